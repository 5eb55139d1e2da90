"""Which weights are quantized, and how: what NeuronConfig's options say together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nxdi.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from nxdi.config.neuron import NeuronConfig

PER_TENSOR, PER_CHANNEL = "per_tensor_symmetric", "per_channel_symmetric"
_TYPES = (PER_TENSOR, PER_CHANNEL)
_DTYPES = {
    "int8": torch.int8,
    "f8e4m3": torch.float8_e4m3fn,
    "f8e5m2": torch.float8_e5m2,
}
# Neuron's e4m3 has infinities and so ends earlier than the format of the same name elsewhere.
_NEURON_E4M3_MAX = 240.0


@dataclass(frozen=True)
class WeightQuantization:
    """Symmetric quantization of weights.

    bound: the largest magnitude that is stored; compute_dtype: of what comes out of a layer;
    skipped: parts of the names of modules that stay as they are.
    """

    dtype: torch.dtype
    is_per_channel: bool
    bound: float
    compute_dtype: torch.dtype
    skipped: tuple[str, ...] = ()

    def skips(self, module: str) -> bool:
        return any(part in module for part in self.skipped)


def weight_quantization(config: NeuronConfig) -> WeightQuantization | None:
    """The scheme that a configuration asks for; None: none.

    Raises: ConfigError for an option without effect; UnsupportedError for schemes that are not
    built.
    """
    skipped = config.modules_to_not_convert
    if not config.quantized:
        for name in ("modules_to_not_convert", "quantized_checkpoints_path"):
            if getattr(config, name):
                raise ConfigError(f"{name}={getattr(config, name)!r} needs quantized=True")
        return None
    if config.quantization_type not in _TYPES:
        raise UnsupportedError(
            f"quantization_type={config.quantization_type!r} is not part of this release; use "
            f"{' or '.join(map(repr, _TYPES))}"
        )
    if config.quantization_dtype not in _DTYPES:
        raise UnsupportedError(
            f"quantization_dtype={config.quantization_dtype!r} is not one of "
            f"{', '.join(map(repr, _DTYPES))}"
        )
    dtype = _DTYPES[config.quantization_dtype]
    return WeightQuantization(
        dtype,
        config.quantization_type == PER_CHANNEL,
        largest_stored(dtype, config.is_for_neuron),
        config.compute_dtype,
        tuple(skipped or ()),
    )


def largest_stored(dtype: torch.dtype, is_for_neuron: bool) -> float:
    """The largest magnitude that weights, keys and values of 8 bits may have."""
    if dtype is torch.int8:
        return 127.0  # as far down as up
    if dtype is torch.float8_e4m3fn and is_for_neuron:
        return _NEURON_E4M3_MAX
    return torch.finfo(dtype).max
