"""Quantizing a model folder, and what it costs in accuracy."""

from nxdi.tools.quantization.calibrate import calibrate_folder
from nxdi.tools.quantization.folder import LayerError, QuantizationReport, quantize_folder
from nxdi.tools.quantization.perplexity import perplexity

__all__ = [
    "LayerError",
    "QuantizationReport",
    "calibrate_folder",
    "perplexity",
    "quantize_folder",
]
