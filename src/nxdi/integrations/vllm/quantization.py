"""Says to vLLM that nxdi reads a folder of quantized weights itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.quantization import (
    QUANTIZATION_METHODS,
    register_quantization_config,
)
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from nxdi.config.validate import WEIGHT_DTYPES
from nxdi.runtime.prequantized import METHODS
from nxdi.runtime.quantized import METHOD


class NxdiQuantization(QuantizationConfig):
    """What vLLM asks of a method of quantization; its own layers are never built."""

    def get_name(self) -> str:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return list(WEIGHT_DTYPES)

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NxdiQuantization:
        return cls()

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Mapping[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Take over every folder that nxdi reads, unless the user has asked for a method."""
        is_read = hf_quant_cfg.get("quant_method") in METHODS
        return METHOD if is_read and user_quant in (None, METHOD) else None

    def get_quant_method(self, layer: nn.Module, prefix: str) -> None:
        return None


def register_quantization() -> None:
    """Register it with vLLM, once per process, where nxdi is the platform."""
    if METHOD not in QUANTIZATION_METHODS:
        register_quantization_config(METHOD)(NxdiQuantization)
