"""OLMoE: norms over all query and key heads, and many small experts.

Source: arXiv:2409.02060; weights as in Hugging Face's OlmoeForCausalLM, of transformers 4 and 5.
"""

from __future__ import annotations

from torch import Tensor, nn

from nxdi.config import InferenceConfig, MoENeuronConfig, NeuronConfig
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.models.olmo2.modeling_olmo2 import NeuronOlmo2Attention
from nxdi.models.qwen3.modeling_qwen3 import rename_head_norms
from nxdi.models.qwen3_moe.modeling_qwen3_moe import rename_gates
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.moe import MoE, MoESpec, fuse_experts, make_moe
from nxdi.modules.norm import RMSNorm


class OlmoeInferenceConfig(LlamaInferenceConfig):
    """Llama's attributes, the bound of projected values, and experts of `intermediate_size`."""

    def get_required_attributes(self) -> list[str]:
        own = ["num_experts", "num_experts_per_tok", "norm_topk_prob", "clip_qkv"]
        return [*super().get_required_attributes(), *own]

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        return MoENeuronConfig


class NeuronOlmoeAttention(NeuronOlmo2Attention):
    """OLMo 2's, with values kept within a bound after the norms."""

    def __init__(self, config: InferenceConfig) -> None:
        super().__init__(config)
        self.bound: float | None = config.clip_qkv

    def split_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().split_heads(q, k, v)
        if self.bound is None:
            return q, k, v
        low, high = -self.bound, self.bound
        return q.clamp(low, high), k.clamp(low, high), v.clamp(low, high)


class NeuronOlmoeModel(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            PreNormDecoderLayer(config, NeuronOlmoeAttention(config), _mixture(config))
            for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


def _mixture(config: InferenceConfig) -> MoE:
    spec = MoESpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_experts=config.num_experts,
        top_k=config.num_experts_per_tok,
        hidden_act=config.hidden_act,
        normalize=config.norm_topk_prob,
    )
    return make_moe(config, spec)


class NeuronOlmoeForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronOlmoeModel
    _config_cls = OlmoeInferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        return fuse_experts(rename_head_norms(rename_gates(state_dict)))
