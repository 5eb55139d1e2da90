"""Input snapshots: what chosen runs of the graphs are given, as one .npy file per tensor.

Turned on by NxDI's environment variables (`nxdi.env.snapshot_options`) or in code. Nothing is
pickled: a snapshot can be read without running code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from nxdi import env
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.graph.plan import GraphSpec
from nxdi.runtime.backend import RankExecutable
from nxdi.runtime.runner import Runner

T = TypeVar("T")


class SnapshotOutputFormat(Enum):
    """NxDI's formats. NUMPY_PICKLE is refused."""

    NUMPY_IMAGES = "NUMPY_IMAGES"
    NUMPY_PICKLE = "NUMPY_PICKLE"


class Loaded(Protocol):
    """A loaded model."""

    @property
    def runner(self) -> Runner: ...


def register_snapshot_hooks(
    model: Loaded,
    output_path: str | PathLike[str],
    output_format: SnapshotOutputFormat = SnapshotOutputFormat.NUMPY_IMAGES,
    capture_at_requests: Sequence[int] = (),
    capture_for_tokens: Sequence[Sequence[int]] | None = None,
    ranks: Sequence[int] | None = None,
) -> None:
    """From now on, write the inputs and caches that chosen runs of the graphs start from.

    capture_at_requests: which runs of each graph, from 0: `<graph>/request<n>/rank<r>/`.
    capture_for_tokens: for each cache row, which of its tokens, 0 being the one its prefill makes:
    `<graph>/row<b>_token<n>/rank<r>/`.
    ranks: which ranks of this process (default: the first).
    Files: `<input>.npy`, and `cache<i>.npy` as before the run; bfloat16 is widened to float32.
    Raises: UnsupportedError for NUMPY_PICKLE; ConfigError for an unknown rank, or nothing to write.
    """
    if output_format is not SnapshotOutputFormat.NUMPY_IMAGES:
        raise UnsupportedError(
            f"output_format={output_format.name} is refused: reading a pickle can run code; use "
            "NUMPY_IMAGES, one .npy file per tensor"
        )
    if not capture_at_requests and not any(capture_for_tokens or ()):
        raise ConfigError(
            "nothing to capture; give capture_at_requests such as [0] (the first run of each "
            "graph), or capture_for_tokens such as [[0, 1]] (the first two tokens of row 0)"
        )
    # On a device, one executable runs all ranks, and shows the caches of the first.
    local = dict(zip(model.runner.world.local_ranks, model.runner.executables, strict=False))
    chosen = list(local)[:1] if ranks is None else list(ranks)
    if not set(chosen) <= local.keys():
        raise ConfigError(f"ranks={chosen} are not all among {list(local)}, which can be seen here")
    visible = {rank: local[rank] for rank in chosen}
    writer = _Snapshots(Path(output_path), capture_at_requests, capture_for_tokens or (), visible)
    model.runner.observers.append(writer)


def unregister_snapshot_hooks(model: Loaded) -> None:
    """Write no more snapshots."""
    observers = model.runner.observers
    observers[:] = [each for each in observers if not isinstance(each, _Snapshots)]


def register_snapshot_hooks_from_env(model: Loaded) -> None:
    """Do as NxDI's environment variables say. Raises: ConfigError for a senseless value."""
    options = env.snapshot_options()
    if options is None:
        return
    if "OUTPUT_PATH" not in options:
        raise ConfigError(
            "NXD_INFERENCE_CAPTURE_SNAPSHOT is set without NXD_INFERENCE_CAPTURE_OUTPUT_PATH; "
            "name the folder to write to, or unset it"
        )
    name = options.get("OUTPUT_FORMAT", SnapshotOutputFormat.NUMPY_IMAGES.name)
    if name not in SnapshotOutputFormat.__members__:
        raise ConfigError(
            f"NXD_INFERENCE_CAPTURE_OUTPUT_FORMAT={name!r} is not known; use NUMPY_IMAGES"
        )
    register_snapshot_hooks(
        model,
        options["OUTPUT_PATH"],
        SnapshotOutputFormat[name],
        _parse(options, "AT_REQUESTS", "0,1", _numbers),
        _parse(options, "FOR_TOKENS", "0,1;;2", lambda text: [*map(_numbers, text.split(";"))]),
    )


class _Snapshots:
    """Observes the runner; counts runs per graph, and tokens per cache row."""

    def __init__(
        self,
        folder: Path,
        requests: Sequence[int],
        tokens: Sequence[Sequence[int]],
        ranks: Mapping[int, RankExecutable],
    ) -> None:
        self._folder, self._requests, self._tokens = folder, set(requests), tokens
        self._ranks = ranks
        self._num_runs: Counter[str] = Counter()
        self._prompt_lens: dict[int, int] = {}

    def __call__(self, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> None:
        request = self._num_runs[spec.name]
        self._num_runs[spec.name] += 1
        if request in self._requests:
            self._write(self._folder / spec.name / f"request{request}", inputs)
        for row, token in self._tokens_made(spec, inputs):
            if row < len(self._tokens) and token in self._tokens[row]:
                self._write(self._folder / spec.name / f"row{row}_token{token}", inputs)

    def _tokens_made(self, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        """(cache row, number of its token) of every row in use that this run makes a token for.

        A cache of blocks has no rows: there it is the row of the step. Each piece of a prompt
        counts as its end, and the next one corrects it.
        """
        last = inputs["position_ids"].amax(dim=1).tolist()
        rows = inputs["seq_ids"].tolist() if "seq_ids" in inputs else range(len(last))
        made = []
        for row, position in zip(rows, last, strict=True):
            if position < 0:
                continue
            if not spec.phase.is_decoding:
                self._prompt_lens[row] = position + 1
            if row in self._prompt_lens:
                made.append((row, position + 1 - self._prompt_lens[row]))
        return made

    def _write(self, folder: Path, inputs: Mapping[str, Tensor]) -> None:
        for rank, executable in self._ranks.items():
            of_rank = folder / f"rank{rank}"
            of_rank.mkdir(parents=True, exist_ok=True)
            named = {f"cache{index}": cache for index, cache in enumerate(executable.caches)}
            for name, tensor in {**inputs, **named}.items():
                wide = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
                np.save(of_rank / f"{name}.npy", wide.numpy(), allow_pickle=False)


def _parse(
    options: Mapping[str, str], name: str, example: str, parse: Callable[[str], list[T]]
) -> list[T]:
    text = options.get(name, "")
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(
            f"NXD_INFERENCE_CAPTURE_{name}={text!r} is not a list such as {example!r}"
        ) from error


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]
