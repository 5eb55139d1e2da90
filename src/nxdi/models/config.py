"""NxDI's path of the config classes; they live in `nxdi.config`."""

from __future__ import annotations

from nxdi.absent import explain_absent_names
from nxdi.config import (
    ChunkedPrefillConfig,
    InferenceConfig,
    KVQuantizationConfig,
    NeuronConfig,
    OnDeviceSamplingConfig,
    to_torch_dtype,
)

__all__ = [
    "ChunkedPrefillConfig",
    "InferenceConfig",
    "KVQuantizationConfig",
    "NeuronConfig",
    "OnDeviceSamplingConfig",
    "to_torch_dtype",
]

explain_absent_names(__name__)
