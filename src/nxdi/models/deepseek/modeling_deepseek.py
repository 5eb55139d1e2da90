"""DeepSeek-V3 and R1: latent attention, a few dense layers, then many small experts in groups.

Source: arXiv:2412.19437; weights as in Hugging Face's DeepseekV3ForCausalLM, of transformers 4 and
5. Models of the same architecture by others, such as Moonlight, are served too.
"""

from __future__ import annotations

from torch import Tensor, nn

from nxdi.config import InferenceConfig, MoENeuronConfig, NeuronConfig
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.models.qwen3_moe.modeling_qwen3_moe import rename_gates
from nxdi.modules.attention.latent import LatentAttention, LatentSizes
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.moe import MoE, MoESpec, fuse_experts, make_moe
from nxdi.modules.norm import RMSNorm
from nxdi.modules.rope import InterleavedRotaryEmbedding, RotaryEmbedding, rope_from_config
from nxdi.modules.yarn import score_growth


class DeepseekV3InferenceConfig(LlamaInferenceConfig):
    """Llama's attributes, the sizes of latents and heads, and the experts.

    `head_dim` is the part of a head that is turned, as in Hugging Face's config.
    """

    def get_required_attributes(self) -> list[str]:
        return [
            *super().get_required_attributes(),
            *("q_lora_rank", "kv_lora_rank"),
            *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
            *("n_routed_experts", "num_experts_per_tok", "n_shared_experts"),
            *("moe_intermediate_size", "first_k_dense_replace"),
            *("n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor"),
        ]

    def add_derived_config(self) -> None:
        super().add_derived_config()
        if hasattr(self, "qk_rope_head_dim"):
            self.head_dim = self.qk_rope_head_dim

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        return MoENeuronConfig


class NeuronDeepseekV3Attention(LatentAttention):
    def __init__(self, config: InferenceConfig) -> None:
        sizes = LatentSizes(
            config.num_attention_heads,
            config.q_lora_rank,
            config.kv_lora_rank,
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
        )
        is_interleaved = getattr(config, "rope_interleave", True)
        super().__init__(
            config,
            sizes,
            rope_from_config(
                config,
                rotary_cls=InterleavedRotaryEmbedding if is_interleaved else RotaryEmbedding,
            ),
            scale=sizes.qk_head_dim**-0.5 * score_growth(config.rope_scaling),
            bias=getattr(config, "attention_bias", False),
        )


class NeuronDeepseekV3Model(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            PreNormDecoderLayer(
                config,
                NeuronDeepseekV3Attention(config),
                GatedMLP(config) if layer < config.first_k_dense_replace else _mixture(config),
            )
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


def _mixture(config: InferenceConfig) -> MoE:
    spec = MoESpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.moe_intermediate_size,
        num_experts=config.n_routed_experts,
        top_k=config.num_experts_per_tok,
        hidden_act=config.hidden_act,
        router_act="sigmoid",
        selection_bias=True,
        num_groups=config.n_group,
        top_groups=config.topk_group,
        normalize=config.norm_topk_prob,
        scaling=config.routed_scaling_factor,
        shared_size=config.moe_intermediate_size * config.n_shared_experts,
    )
    return make_moe(config, spec)


class NeuronDeepseekV3ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronDeepseekV3Model
    _config_cls = DeepseekV3InferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        return fuse_experts(rename_gates(_without_predictors(state_dict, config)))


def _without_predictors(
    state_dict: dict[str, Tensor], config: InferenceConfig
) -> dict[str, Tensor]:
    """Leave out the layers after the last, which predict further tokens (arXiv:2412.19437 2.2)."""
    num_further = getattr(config, "num_nextn_predict_layers", None) or 0
    first = config.num_hidden_layers
    further = tuple(f"layers.{first + i}." for i in range(num_further))
    return {name: t for name, t in state_dict.items() if not name.startswith(further)}
