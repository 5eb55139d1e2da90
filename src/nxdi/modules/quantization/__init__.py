"""Weights of few bits: how they are stored, multiplied, and made from a checkpoint."""

from nxdi.modules.quantization.convert import quantize_modules, quantize_state
from nxdi.modules.quantization.scaled import ScaledWeight, dequantize, quantize

__all__ = ["ScaledWeight", "dequantize", "quantize", "quantize_modules", "quantize_state"]
