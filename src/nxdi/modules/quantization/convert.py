"""Gives the layers of a model quantized weights, and makes them from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nxdi.config.quantization import WeightQuantization
from nxdi.errors import UnsupportedError
from nxdi.modules.attention.projections import OutputProjection
from nxdi.modules.moe.experts import Experts
from nxdi.modules.quantization.scaled import ScaledWeight, quantize
from nxdi.parallel_layers.layers import (
    BaseParallelLinear,
    ColumnParallelLinear,
    ParallelEmbedding,
    ReplicatedLinear,
    RowParallelLinear,
)
from nxdi.parallel_layers.sharding import set_shard, shard_of

# These call their weight's format, and nothing else reads the weight.
_CONVERTIBLE = {ColumnParallelLinear, RowParallelLinear, ReplicatedLinear, OutputProjection}


def quantize_modules(model: nn.Module, scheme: WeightQuantization, is_tied: bool) -> None:
    """Replace the weights of linear layers by quantized ones, and their scales beside them.

    is_tied: the embedding has lm_head's weight, and so is quantized with it.
    Raises: UnsupportedError for a layer with arithmetic of its own.
    """
    for name, module in model.named_modules():
        if scheme.skips(name):
            continue
        if isinstance(module, BaseParallelLinear):
            _check_convertible(name, module)
            _convert(module, scheme)
        elif isinstance(module, ParallelEmbedding) and is_tied:
            _convert(module, scheme)
        elif isinstance(module, Experts):
            raise UnsupportedError(
                f"the weights of all experts in {name} cannot be quantized in this release; add "
                "'experts' to modules_to_not_convert to leave them as they are"
            )


def quantize_state(
    model: nn.Module, full: dict[str, Tensor], scheme: WeightQuantization
) -> dict[str, Tensor]:
    """A full checkpoint with the weights that the model wants quantized; those it has are kept."""
    state = dict(full)
    made: dict[int, tuple[Tensor, Tensor]] = {}  # by address: tied weights stay one tensor
    for name in quantized_names(model):
        weight = state.get(f"{name}.weight")
        if weight is None or weight.dtype is scheme.dtype:
            continue  # what is absent, be it a scale, is reported with all else
        address = weight.data_ptr()
        if address not in made:
            made[address] = quantize(weight, scheme)
        state[f"{name}.weight"], state[f"{name}.scale"] = made[address]
    return state


def quantized_names(model: nn.Module) -> Iterator[str]:
    """The modules that have quantized weights."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight_format", None), ScaledWeight):
            yield name


def _check_convertible(name: str, module: BaseParallelLinear) -> None:
    if type(module) not in _CONVERTIBLE:
        raise UnsupportedError(
            f"{name} is a {type(module).__name__}, which multiplies its weight itself and cannot "
            f"have a quantized one; add {name!r} to modules_to_not_convert"
        )


def _convert(module: BaseParallelLinear | ParallelEmbedding, scheme: WeightQuantization) -> None:
    old = module.weight
    assert isinstance(old, nn.Parameter)
    rule = shard_of(old)
    weight = nn.Parameter(torch.empty_like(old, dtype=scheme.dtype), requires_grad=False)
    num_scales = old.shape[0] if scheme.is_per_channel else 1
    scale = nn.Parameter(old.new_empty(num_scales, 1, dtype=torch.float32), requires_grad=False)
    if rule is not None:
        set_shard(weight, rule)
        # Scales belong to rows, and are cut where the rows are.
        if scheme.is_per_channel and getattr(rule, "dim", 1) == 0:
            set_shard(scale, rule)
    module.weight, module.scale = weight, scale
    module.weight_format = ScaledWeight(scheme.compute_dtype)
