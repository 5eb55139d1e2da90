"""Weights of few bits: how they are stored, multiplied, and made from a checkpoint."""

from nxdi.modules.quantization.blocks import dequantize, quantize
from nxdi.modules.quantization.convert import (
    never_quantized,
    quantizable_modules,
    quantize_modules,
    weight_names,
)
from nxdi.modules.quantization.state import (
    explaining_scales,
    parts_of,
    put_scales,
    quantize_state,
    quantized_names,
    scale_name,
    take_scales,
    widen_state,
)

__all__ = [
    "dequantize",
    "explaining_scales",
    "never_quantized",
    "parts_of",
    "put_scales",
    "quantizable_modules",
    "quantize",
    "quantize_modules",
    "quantize_state",
    "quantized_names",
    "scale_name",
    "take_scales",
    "weight_names",
    "widen_state",
]
