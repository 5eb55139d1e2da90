"""Llama 1 to 3.3: dense decoder, grouped-query attention, rotary positions, gated MLP.

Source: arXiv:2302.13971, arXiv:2307.09288, arXiv:2407.21783; weights as in Hugging Face's
LlamaForCausalLM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nxdi.absent import explain_absent_names
from nxdi.config import InferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.attention.utils import RotaryEmbedding
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import RMSNorm
from nxdi.modules.rope import llama3_frequencies, rope_from_config


class LlamaInferenceConfig(InferenceConfig):
    """The Hugging Face attributes this decoder reads."""

    def get_required_attributes(self) -> list[str]:
        return [
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "hidden_act",
            "rms_norm_eps",
            "rope_theta",
            "max_position_embeddings",
        ]


class NeuronLlamaAttention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig, input_size: int | None = None) -> None:
        has_bias = getattr(config, "attention_bias", False)
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            input_size=input_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config),
            qkv_bias=has_bias,
            o_bias=has_bias,
        )


class NeuronLlamaDecoderLayer(PreNormDecoderLayer):
    def __init__(self, config: InferenceConfig) -> None:
        mlp = GatedMLP(config, bias=getattr(config, "mlp_bias", False))
        super().__init__(config, NeuronLlamaAttention(config), mlp)


class NeuronLlamaModel(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            NeuronLlamaDecoderLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


class NeuronLlamaForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronLlamaModel
    _config_cls = LlamaInferenceConfig


# Names that models written for NxDI import from here.


class NeuronLlamaMLP(GatedMLP):
    """The gated MLP as NxDI's layers call it: with a norm to fuse, and a pair as its result."""

    def __init__(self, config: InferenceConfig) -> None:
        super().__init__(config, bias=getattr(config, "mlp_bias", False))
        neuron = config.neuron_config
        # A layer that leaves its norm to NxDI's fused kernel hands it over instead of applying it.
        self.applies_norm = bool(neuron.mlp_kernel_enabled and not neuron.sequence_parallel_enabled)

    def forward(  # type: ignore[override]  # NxDI's form: the pair, where GatedMLP has one tensor
        self,
        x: Tensor,
        rmsnorm: nn.Module | None = None,
        residual: Tensor | None = None,
        adapter_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        if rmsnorm is not None and self.applies_norm:
            x = rmsnorm(x)
        return super().forward(x), residual


class Llama3RotaryEmbedding(RotaryEmbedding):
    """Rotary angles with the frequency scaling of Llama 3.1, by NxDI's constructor."""

    def __init__(
        self,
        dim: int,
        max_position_embeddings: int = 131072,
        base: float = 500000.0,
        factor: float = 8.0,
        low_freq_factor: float = 1.0,
        high_freq_factor: float = 4.0,
        original_max_position_embeddings: int = 8192,
    ) -> None:
        super().__init__(dim, max_position_embeddings, base)
        self.scaling = {
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }

    def get_inv_freqs(self, device: torch.device | None = None) -> Tensor:
        return llama3_frequencies(super().get_inv_freqs(), self.scaling)


def get_rmsnorm_cls() -> type[nn.Module]:
    """The RMSNorm of this library, on every device."""
    return RMSNorm


explain_absent_names(__name__)
