"""NxDI's path of the config classes; they live in `nxdi.config`."""

from __future__ import annotations

from nxdi.config import InferenceConfig, NeuronConfig, OnDeviceSamplingConfig, to_torch_dtype

__all__ = ["InferenceConfig", "NeuronConfig", "OnDeviceSamplingConfig", "to_torch_dtype"]
