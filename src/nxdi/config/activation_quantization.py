"""Whether and how the inputs of quantized layers are quantized as well."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nxdi.config.quantization import PER_CHANNEL, PER_TENSOR, largest_stored, weight_quantization
from nxdi.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    import torch

    from nxdi.config.neuron import NeuronConfig

DYNAMIC, STATIC = "dynamic", "static"


@dataclass(frozen=True)
class ActivationQuantization:
    """Symmetric quantization of activations in the dtype of the weights.

    is_static: with one scale for all of a layer's input, from the checkpoint; else with one for
    each token. bound: the largest magnitude that is stored; clamp: the largest that is quantized,
    beyond which values are cut off before there is a scale.
    """

    dtype: torch.dtype
    is_static: bool
    bound: float
    clamp: float


def activation_quantization(config: NeuronConfig) -> ActivationQuantization | None:
    """The scheme that a configuration asks for; None: none.

    Raises: ConfigError for options that contradict each other; UnsupportedError for weights that
    have no product with quantized activations.
    """
    kind, clamp = config.activation_quantization_type, config.quantize_clamp_bound
    if not clamp > 0:
        raise ConfigError(f"quantize_clamp_bound={clamp} must be above 0, a magnitude; raise it")
    if kind is None:
        if not math.isinf(clamp):
            raise ConfigError(
                f"quantize_clamp_bound={clamp} bounds quantized activations; set "
                f"activation_quantization_type={DYNAMIC!r} or {STATIC!r} as well"
            )
        return None
    if kind not in (DYNAMIC, STATIC):
        raise ConfigError(
            f"activation_quantization_type={kind!r} is not one of {DYNAMIC!r}, {STATIC!r}"
        )
    weights = weight_quantization(config)
    if weights is None:
        raise ConfigError(
            f"activation_quantization_type={kind!r} needs quantized weights; set quantized=True"
        )
    if config.quantization_type not in (PER_TENSOR, PER_CHANNEL):
        raise UnsupportedError(
            f"activation_quantization_type={kind!r} does not go with quantization_type="
            f"{config.quantization_type!r}; use {PER_CHANNEL!r} or {PER_TENSOR!r}"
        )
    if weights.is_packed:
        raise UnsupportedError(
            f"activation_quantization_type={kind!r} does not go with quantization_dtype="
            f"{config.quantization_dtype!r}; use 'int8', 'f8e4m3' or 'f8e5m2'"
        )
    bound = largest_stored(weights.dtype, config.is_for_neuron)
    return ActivationQuantization(weights.dtype, kind == STATIC, bound, clamp)
