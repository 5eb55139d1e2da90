"""Gives the layers of a model weights of few bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from nxdi.config.quantization import WeightQuantization
from nxdi.errors import UnsupportedError
from nxdi.modules.attention.latent import FromLatent
from nxdi.modules.attention.projections import OutputProjection
from nxdi.modules.moe.experts import Experts
from nxdi.modules.quantization.blocks import BlockFormat, format_of, num_blocks
from nxdi.modules.quantization.scaled import BlockExperts, make_weight_format
from nxdi.modules.quantization.sharding import ScaleShard, local_block, packed_rule
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


def quantizable_modules(model: nn.Module, is_tied: bool) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose weights a scheme quantizes unless it skips them, with their names.

    is_tied: the embedding has lm_head's weight, and so is quantized with it.
    """
    for name, module in model.named_modules():
        if isinstance(module, BaseParallelLinear | Experts) or (
            isinstance(module, ParallelEmbedding) and is_tied
        ):
            yield name, module


def never_quantized(model: nn.Module) -> list[str]:
    """The modules that multiply their weights from both sides, and so keep them plain."""
    return [name for name, module in model.named_modules() if isinstance(module, FromLatent)]


def weight_names(name: str, module: nn.Module) -> list[str]:
    """The weights of such a module, by their names in a checkpoint of the model."""
    own = module.WEIGHTS if isinstance(module, Experts) else ("weight",)
    return [f"{name}.{weight}" for weight in own]


def quantize_modules(model: nn.Module, scheme: WeightQuantization, is_tied: bool) -> None:
    """Replace the weights of linear layers and experts by quantized ones, and their scales.

    Raises: UnsupportedError for a layer with arithmetic of its own; ConfigError where a rank's
    piece would begin within a byte.
    """
    for name, module in list(quantizable_modules(model, is_tied)):
        if scheme.skips(name):
            continue
        if isinstance(module, Experts):
            stored = {
                weight: _replace(module, name, weight, f"{weight}_scale", scheme)
                for weight in module.WEIGHTS
            }
            module.weight_format = BlockExperts(stored)
        else:
            assert isinstance(module, BaseParallelLinear | ParallelEmbedding)
            _check_convertible(name, module)
            found = _replace(module, name, "weight", "scale", scheme)
            module.weight_format = make_weight_format(found, scheme.compute_dtype)


def _check_convertible(name: str, module: nn.Module) -> None:
    if isinstance(module, BaseParallelLinear) and type(module) not in _CONVERTIBLE:
        raise UnsupportedError(
            f"{name} is a {type(module).__name__}, which multiplies its weight itself and cannot "
            f"have a quantized one; add {name!r} to modules_to_not_convert"
        )


def _replace(
    module: nn.Module, path: str, name: str, scale_name: str, scheme: WeightQuantization
) -> BlockFormat:
    """Give a module a quantized weight and its scales. Returns: how a rank's piece is stored."""
    old = module.get_parameter(name)
    rule, piece = shard_of(old), tuple(old.shape)
    found = format_of(scheme, old.dim())
    stored = replace(found, block=local_block(rule, piece, found.block))
    shape = list(piece)
    packed = rule
    if scheme.is_packed:
        dim = stored.packed_dim
        packed = rule and packed_rule(rule, piece, dim, f"{path}.{name}")
        shape[dim] = -(-shape[dim] // 2)
    weight = nn.Parameter(old.new_empty(shape, dtype=scheme.dtype), requires_grad=False)
    counts = [num_blocks(size, unit) for size, unit in zip(piece, stored.block, strict=True)]
    scale = nn.Parameter(old.new_empty(counts, dtype=stored.scales.dtype), requires_grad=False)
    if rule is not None and packed is not None:
        set_shard(weight, packed)
        set_shard(scale, ScaleShard(rule, piece, found.block, stored.block))
    setattr(module, name, weight)
    setattr(module, scale_name, scale)
    return stored
