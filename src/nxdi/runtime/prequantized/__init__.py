"""Folders and checkpoints whose weights another program has quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nxdi.config.limits import shown
from nxdi.errors import UnsupportedError
from nxdi.runtime.prequantized.compressed_tensors import read_compressed_tensors
from nxdi.runtime.prequantized.fp8 import read_fp8
from nxdi.runtime.prequantized.mxfp4 import read_mxfp4
from nxdi.runtime.prequantized.nxdi_state import nxdi_format
from nxdi.runtime.prequantized.stored import StoredFormat
from nxdi.runtime.quantized import METHOD

__all__ = ["METHODS", "StoredFormat", "nxdi_format", "read_format"]

# By `quant_method`.
_READERS: dict[str, Callable[[Mapping[str, Any]], StoredFormat]] = {
    "compressed-tensors": read_compressed_tensors,
    "fp8": read_fp8,
    "mxfp4": read_mxfp4,
}
METHODS = (METHOD, *_READERS)


def read_format(quantization: object) -> StoredFormat:
    """How weights are stored, from the `quantization_config` of a folder's config.json.

    Raises: UnsupportedError for a method or a scheme that is not read; WeightError if it is
    damaged.
    """
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
    if not isinstance(quantization, Mapping) or not isinstance(method, str):
        raise UnsupportedError(
            f"quantization_config={shown(quantization)} names no quant_method; restore config.json"
        )
    if method not in _READERS:
        raise UnsupportedError(
            f"weights of quant_method={shown(method)} are not read; use a folder of "
            f"{', '.join(METHODS)} or quantize the original checkpoint with `nxdi quantize`"
        )
    return _READERS[method](quantization)
