"""The host side of sampling in the graph: per-row parameters and random numbers as plain inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nxdi.errors import ShapeError

Numbers = float | Sequence[float]


def prepare_sampling_params(
    batch_size: int, top_k: Numbers = 1, top_p: Numbers = 1.0, temperature: Numbers = 1.0
) -> Tensor:
    """The [batch_size, 3] float32 tensor of (top_k, top_p, temperature); a number serves all rows.

    Raises: ShapeError for a list of another length, or a value out of range.
    """
    columns = []
    for name, value in (("top_k", top_k), ("top_p", top_p), ("temperature", temperature)):
        values = (
            [float(value)] * batch_size
            if isinstance(value, (int, float))
            else [float(v) for v in value]
        )
        if len(values) != batch_size:
            raise ShapeError(
                f"{name} has {len(values)} values for a batch of {batch_size}; give one per row"
            )
        columns.append(values)
    params = torch.tensor(columns, dtype=torch.float32).T.contiguous()
    check_sampling_params(params, batch_size)
    return params


def check_sampling_params(params: Tensor, num_rows: int) -> None:
    """Check what a caller passes as sampling_params.

    Raises: ShapeError unless params is [num_rows, 3] with integer top_k >= -1, 0 < top_p <= 1,
    temperature >= 0.
    """
    if tuple(params.shape) != (num_rows, 3):
        raise ShapeError(
            f"sampling_params has shape {tuple(params.shape)}, needs ({num_rows}, 3): top_k, "
            "top_p, temperature per row"
        )
    top_k, top_p, temperature = params.float().unbind(dim=-1)
    checks = (
        (
            "top_k",
            top_k,
            (top_k >= -1) & (top_k == top_k.floor()),
            "an integer >= 1, or 0 or -1 for no limit",
        ),
        ("top_p", top_p, (top_p > 0) & (top_p <= 1), "above 0 and at most 1"),
        (
            "temperature",
            temperature,
            (temperature >= 0) & temperature.isfinite(),
            "finite and at least 0",
        ),
    )
    for name, values, valid, rule in checks:
        if not bool(valid.all()):
            row = int((~valid).nonzero()[0])
            raise ShapeError(
                f"{name}={values[row].item()} in row {row} of sampling_params must be {rule}"
            )


def is_greedy(params: Tensor) -> bool:
    """Whether every row asks for the most likely token."""
    return bool(((params[:, 0] == 1) | (params[:, 2] == 0)).all())


def uniform_for(seeds: Sequence[int], positions: Tensor) -> Tensor:
    """One number in [0, 1) per position, a function of it and of the row's seed only.

    So a row draws the same numbers whatever its neighbours, its place in the batch, or the backend.
    Shapes: positions [B] or [B, S], -1 = padding -> same.
    Source: Philox, Salmon et al., SC 2011.
    """
    of_rows = positions.clamp(min=0).reshape(len(positions), -1).tolist()
    draws = [
        np.random.Generator(np.random.Philox(key=seed % 2**64, counter=position)).random()
        for seed, places in zip(seeds, of_rows, strict=True)
        for position in places
    ]
    uniform = torch.tensor(draws, dtype=torch.float32).clamp(max=1 - 2**-24)
    return uniform.view(positions.shape)
