"""Qwen3-MoE: Qwen3's decoder with a mixture of experts in some layers, usually in all.

Source: arXiv:2505.09388; weights as in Hugging Face's Qwen3MoeForCausalLM, of transformers 4 and 5.
"""

from __future__ import annotations

from torch import Tensor, nn

from nxdi.config import InferenceConfig, MoENeuronConfig, NeuronConfig
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.models.qwen3.modeling_qwen3 import NeuronQwen3Attention, rename_head_norms
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.moe import MoE, MoESpec, fuse_experts, make_moe
from nxdi.modules.norm import RMSNorm


class Qwen3MoeInferenceConfig(LlamaInferenceConfig):
    """Llama's attributes, a window for all layers or none, and the experts."""

    def get_required_attributes(self) -> list[str]:
        return [
            *super().get_required_attributes(),
            "sliding_window",
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "norm_topk_prob",
            "mlp_only_layers",
            "decoder_sparse_step",
        ]

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        return MoENeuronConfig


class NeuronQwen3MoeModel(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            PreNormDecoderLayer(
                config,
                NeuronQwen3Attention(config, "sliding_attention"),
                _mixture(config) if _is_sparse(config, layer) else GatedMLP(config),
            )
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


def _is_sparse(config: InferenceConfig, layer: int) -> bool:
    return layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0


def _mixture(config: InferenceConfig) -> MoE:
    spec = MoESpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.moe_intermediate_size,
        num_experts=config.num_experts,
        top_k=config.num_experts_per_tok,
        hidden_act=config.hidden_act,
        normalize=config.norm_topk_prob,
    )
    return make_moe(config, spec)


class NeuronQwen3MoeForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronQwen3MoeModel
    _config_cls = Qwen3MoeInferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        return fuse_experts(rename_head_norms(rename_gates(state_dict)))


def rename_gates(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's name of a router -> the mixture's."""
    return {name.replace(".mlp.gate.", ".mlp.router."): t for name, t in state_dict.items()}
