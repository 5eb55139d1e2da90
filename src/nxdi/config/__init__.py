"""How a model is described and run: options, Hugging Face attributes, and their JSON form."""

from __future__ import annotations

from nxdi.config.chunked_prefill import ChunkedPrefillConfig
from nxdi.config.from_hf import load_pretrained_config, to_pretrained_config
from nxdi.config.inference import InferenceConfig
from nxdi.config.keywords import to_torch_dtype
from nxdi.config.kv_quantization import KVQuantizationConfig
from nxdi.config.legacy import OPTIONS, Option, Status, kernel_options, no_op_options
from nxdi.config.moe import (
    BlockwiseMatmulConfig,
    HybridShardingConfig,
    MoENeuronConfig,
    RouterConfig,
)
from nxdi.config.neuron import NeuronConfig
from nxdi.config.sampling import OnDeviceSamplingConfig
from nxdi.config.speculation import FusedSpecNeuronConfig

__all__ = [
    "OPTIONS",
    "BlockwiseMatmulConfig",
    "ChunkedPrefillConfig",
    "FusedSpecNeuronConfig",
    "HybridShardingConfig",
    "InferenceConfig",
    "KVQuantizationConfig",
    "MoENeuronConfig",
    "NeuronConfig",
    "OnDeviceSamplingConfig",
    "Option",
    "RouterConfig",
    "Status",
    "kernel_options",
    "load_pretrained_config",
    "no_op_options",
    "to_pretrained_config",
    "to_torch_dtype",
]
