"""NxDI's path of the config classes; they live in `nxdi.config`."""

from __future__ import annotations

from nxdi.absent import explain_absent_names
from nxdi.config import (
    BlockwiseMatmulConfig,
    ChunkedPrefillConfig,
    FusedSpecNeuronConfig,
    HybridShardingConfig,
    InferenceConfig,
    KVQuantizationConfig,
    MoENeuronConfig,
    NeuronConfig,
    OnDeviceSamplingConfig,
    RouterConfig,
    to_torch_dtype,
)

__all__ = [
    "BlockwiseMatmulConfig",
    "ChunkedPrefillConfig",
    "FusedSpecNeuronConfig",
    "HybridShardingConfig",
    "InferenceConfig",
    "KVQuantizationConfig",
    "MoENeuronConfig",
    "NeuronConfig",
    "OnDeviceSamplingConfig",
    "RouterConfig",
    "to_torch_dtype",
]

explain_absent_names(__name__)
