"""Which weights are quantized, and how: what NeuronConfig's options say together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nxdi.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from nxdi.config.neuron import NeuronConfig

PER_TENSOR, PER_CHANNEL = "per_tensor_symmetric", "per_channel_symmetric"
EXPERT_WISE, BLOCKWISE = "expert_wise_per_channel_symmetric", "blockwise_symmetric"
QUANTIZATION_TYPES = (PER_TENSOR, PER_CHANNEL, EXPERT_WISE, BLOCKWISE)
INT4, MXFP4 = "int4", "f4e2m1"
FLOAT_SCALES, E8M0_SCALES = "f32", "f8e8m0"
# What weights are stored in. Of the last two, a byte has two values.
STORED_DTYPES = {
    "int8": torch.int8,
    "f8e4m3": torch.float8_e4m3fn,
    "f8e5m2": torch.float8_e5m2,
    INT4: torch.uint8,
    MXFP4: torch.uint8,
}
MXFP4_BLOCK = (1, 32)
_PACKED_BOUNDS = {INT4: 7.0, MXFP4: 6.0}
# Neuron's e4m3 has infinities and so ends earlier than the format of the same name elsewhere.
_NEURON_E4M3_MAX = 240.0
_ROWS_FIRST, _COLUMNS_FIRST = [0, 1], [1, 2]

# The values that have one scale, along each dimension of a weight; None: all of them.
Block = tuple[int | None, ...]


@dataclass(frozen=True)
class WeightQuantization:
    """Symmetric quantization of weights.

    name: of what a weight is stored in. linear_block, expert_block: the values that have one scale,
    of a weight [N, K] and of the weights of all experts [E, K, N].
    bound: the largest magnitude that is stored; compute_dtype: of what comes out of a layer;
    skipped: parts of the names of modules that stay as they are.
    """

    name: str
    linear_block: Block
    expert_block: Block
    bound: float
    compute_dtype: torch.dtype
    skipped: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        return STORED_DTYPES[self.name]

    @property
    def is_packed(self) -> bool:
        """Whether two values that follow each other along K share a byte."""
        return self.name in _PACKED_BOUNDS

    def block_of(self, num_dims: int) -> Block:
        return self.linear_block if num_dims == 2 else self.expert_block

    def skips(self, module: str) -> bool:
        return any(part in module for part in self.skipped)


def weight_quantization(config: NeuronConfig) -> WeightQuantization | None:
    """The scheme that a configuration asks for; None: none.

    Raises: ConfigError for an option without effect, or blocks that are no blocks; UnsupportedError
    for schemes that are not built.
    """
    if not config.quantized:
        for name in ("modules_to_not_convert", "quantized_checkpoints_path"):
            if getattr(config, name):
                raise ConfigError(f"{name}={getattr(config, name)!r} needs quantized=True")
        return None
    name = _checked(config, "quantization_dtype", STORED_DTYPES)
    kind = _checked(config, "quantization_type", QUANTIZATION_TYPES)
    linear, expert = _size_of_blocks(config) if kind == BLOCKWISE else _BLOCKS[kind]
    if kind != BLOCKWISE and (config.quantization_block_size or config.quantization_block_axis):
        raise ConfigError(
            f"quantization_block_size={config.quantization_block_size!r} and "
            f"quantization_block_axis={config.quantization_block_axis!r} need "
            f"quantization_type={BLOCKWISE!r}"
        )
    _check_packing(config, linear)
    bound = _PACKED_BOUNDS.get(name) or largest_stored(STORED_DTYPES[name], config.is_for_neuron)
    skipped = tuple(config.modules_to_not_convert or ())
    return WeightQuantization(name, linear, expert, bound, config.compute_dtype, skipped)


# type -> the blocks of a linear layer and of all experts, where no size is given.
_BLOCKS: dict[str, tuple[Block, Block]] = {
    PER_TENSOR: ((None, None), (None, None, None)),
    PER_CHANNEL: ((1, None), (None, None, 1)),
    EXPERT_WISE: ((1, None), (1, None, 1)),
}


def _checked(config: NeuronConfig, option: str, known: Iterable[str]) -> str:
    value = getattr(config, option)
    if value not in tuple(known):
        raise UnsupportedError(
            f"{option}={value!r} is not one of {', '.join(map(repr, known))}; use one of them"
        )
    return str(value)


def _size_of_blocks(config: NeuronConfig) -> tuple[Block, Block]:
    """The blocks of a linear layer and of all experts, from their output and input features."""
    size, axis = config.quantization_block_size, config.quantization_block_axis
    if not (isinstance(size, Sequence) and len(size) == 2 and all(map(_is_positive, size))):
        raise ConfigError(
            f"quantization_block_size={size!r} must be two integers from 1 on: the output and the "
            "input features that have one scale, as in [128, 128]"
        )
    if axis not in (None, _ROWS_FIRST, _COLUMNS_FIRST):
        raise ConfigError(
            f"quantization_block_axis={axis!r} is neither {_ROWS_FIRST}, the features of a linear "
            f"layer's weight, nor {_COLUMNS_FIRST}, those of the weight of all experts"
        )
    rows, columns = reversed(size) if axis == _COLUMNS_FIRST else size
    return (rows, columns), (1, columns, rows)


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_packing(config: NeuronConfig, block: Block) -> None:
    name, scales = config.quantization_dtype, config.quantization_scale_dtype
    wanted = E8M0_SCALES if name == MXFP4 else FLOAT_SCALES
    if scales != wanted:
        raise UnsupportedError(
            f"quantization_scale_dtype={scales!r} does not go with quantization_dtype={name!r}; "
            f"use {wanted!r}"
        )
    if name == MXFP4 and block != MXFP4_BLOCK:
        raise UnsupportedError(
            f"quantization_dtype={MXFP4!r} has blocks of {list(MXFP4_BLOCK)}; use "
            f"quantization_type={BLOCKWISE!r} and quantization_block_size={list(MXFP4_BLOCK)}"
        )
    if name == INT4 and block[1] is not None and block[1] % 2:
        raise ConfigError(
            f"quantization_block_size={config.quantization_block_size!r} has an odd number of "
            "input features, and two of them share a byte; use an even number"
        )


def largest_stored(dtype: torch.dtype, is_for_neuron: bool) -> float:
    """The largest magnitude that weights, keys and values of 8 bits may have."""
    if dtype is torch.int8:
        return 127.0  # as far down as up
    if dtype is torch.float8_e4m3fn and is_for_neuron:
        return _NEURON_E4M3_MAX
    return torch.finfo(dtype).max
