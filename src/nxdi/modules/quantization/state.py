"""Checkpoints whose weights are quantized, or are to be: weights and scales by name.

The scales of "x.weight" are "x.scale", and those of "experts.down_proj" are
"experts.down_proj_scale".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nxdi.config.quantization import STORED_DTYPES, WeightQuantization
from nxdi.errors import NxdiError, UnsupportedError, WeightError
from nxdi.modules.quantization.blocks import dequantize, quantize
from nxdi.modules.quantization.convert import quantizable_modules, weight_names
from nxdi.modules.quantization.scaled import BlockExperts, BlockWeight
from nxdi.modules.quantization.sharding import parts_along
from nxdi.parallel_layers.sharding import shard_of

_STORED = frozenset(STORED_DTYPES.values())


def scale_name(weight: str) -> str:
    """The name of a weight's scales."""
    module = weight.removesuffix(".weight")
    return f"{weight}_scale" if module == weight else f"{module}.scale"


def take_scales(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the scales of a checkpoint. Returns: them by the names of their weights."""
    names = {
        name: scale_name(name)
        for name, tensor in state.items()
        if tensor.dtype in _STORED and scale_name(name) in state
    }
    return {weight: state.pop(scale) for weight, scale in names.items()}


def put_scales(state: dict[str, Tensor], scales: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint with the scales that `take_scales` has removed."""
    return {**state, **{scale_name(weight): scale for weight, scale in scales.items()}}


@contextmanager
def explaining_scales() -> Iterator[None]:
    """Raise UnsupportedError where what rearranges weights cannot do the same to their scales."""
    try:
        yield
    except (NxdiError, RuntimeError, ValueError, LookupError) as error:
        raise UnsupportedError(
            f"this model rearranges its weights in a way that their scales cannot follow: {error}; "
            "use a checkpoint with one scale for each row, or one that is not quantized"
        ) from error


def quantized_names(model: nn.Module) -> list[str]:
    """The quantized weights of a model."""
    return [
        weight
        for name, module in quantizable_modules(model, is_tied=True)
        if isinstance(module.weight_format, BlockWeight | BlockExperts)
        for weight in weight_names(name, module)
    ]


def quantize_state(
    model: nn.Module, full: dict[str, Tensor], scheme: WeightQuantization
) -> dict[str, Tensor]:
    """A full checkpoint with the weights that the model wants quantized; those it has are kept.

    Raises: WeightError for a weight that is quantized otherwise, or beyond what is to be stored.
    """
    state = dict(full)
    made: dict[int, tuple[Tensor, Tensor]] = {}  # by address: tied weights stay one tensor
    wanted = model.state_dict(keep_vars=True)
    for name in quantized_names(model):
        weight = state.get(name)
        if weight is None:
            continue  # what is absent, be it a scale, is reported with all else
        if weight.dtype in _STORED:
            _check_stored(name, weight, scheme)
            continue
        address = weight.data_ptr()
        if address not in made:
            made[address] = quantize(weight, scheme, *parts_of(wanted[name]))
        state[name], state[scale_name(name)] = made[address]
    return state


def widen_state(
    model: nn.Module, full: dict[str, Tensor], stored: WeightQuantization
) -> dict[str, Tensor]:
    """A full checkpoint in which the weights that the model wants plain are so, in float32.

    stored: how the others of the checkpoint are quantized.
    """
    state = dict(full)
    scales = take_scales(state)
    kept = set(quantized_names(model))
    wanted = model.state_dict(keep_vars=True)
    plain = {
        name: dequantize(state[name], scale, stored, *parts_of(wanted.get(name, scale)))
        for name, scale in scales.items()
        if name not in kept
    }
    return put_scales(
        {**state, **plain}, {name: scale for name, scale in scales.items() if name in kept}
    )


def _check_stored(name: str, weight: Tensor, scheme: WeightQuantization) -> None:
    if weight.dtype is not scheme.dtype:
        raise WeightError(
            f"{name} is stored as {weight.dtype}, but quantization_dtype={scheme.name!r} is "
            f"{scheme.dtype}; give the options with which the checkpoint was quantized"
        )
    if weight.dtype is torch.float8_e4m3fn and scheme.bound < torch.finfo(weight.dtype).max:
        largest = float(weight.float().abs().max())
        if largest > scheme.bound:
            raise WeightError(
                f"{name} has values up to {largest:g}, and on this device float8_e4m3 ends at "
                f"{scheme.bound:g}; quantize the original checkpoint for it, or use int8"
            )


def parts_of(parameter: Tensor) -> tuple[int, int]:
    """(parts, dimension): how many weights this one has one after the other."""
    rule = shard_of(parameter)
    dim = getattr(rule, "dim", 0)
    return parts_along(rule, dim), dim
