"""DBRX: layer norms without bias, bounded queries, keys and values, and a mixture of experts.

Source: databricks/dbrx (2024); weights as in Hugging Face's DbrxForCausalLM, which stores the
weights of all experts of a layer below each other.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from nxdi.config import InferenceConfig, MoENeuronConfig, NeuronConfig
from nxdi.errors import UnsupportedError, WeightError
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.moe import MoE, MoESpec, make_moe
from nxdi.modules.norm import LayerNorm
from nxdi.modules.rope import rope_from_config


class DbrxInferenceConfig(InferenceConfig):
    """DBRX's attributes, those of attention and experts in configs of their own."""

    def add_derived_config(self) -> None:
        if self._has("attn_config.kv_n_heads"):
            self.num_key_value_heads = self.attn_config.kv_n_heads
        if self._has("attn_config.rope_theta"):
            self.rope_theta, self.rope_scaling = self.attn_config.rope_theta, None

    def get_required_attributes(self) -> list[str]:
        return [
            *("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size", "head_dim"),
            *("rope_theta", "attn_config.kv_n_heads", "attn_config.clip_qkv"),
            *("ffn_config.ffn_hidden_size", "ffn_config.ffn_act_fn"),
            *("ffn_config.moe_num_experts", "ffn_config.moe_top_k"),
            "ffn_config.moe_normalize_expert_weights",
        ]

    def validate_config(self) -> None:
        super().validate_config()
        norm = self.ffn_config.moe_normalize_expert_weights
        if norm not in (None, 1):
            raise UnsupportedError(
                f"moe_normalize_expert_weights={norm} is not supported; experts' weights either "
                "sum to 1 (1.0) or are left as they are (null)"
            )

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        return MoENeuronConfig


class NeuronDbrxAttention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig) -> None:
        super().__init__(
            config,
            hidden_size=config.d_model,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.attn_config.kv_n_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config),
            clip_qkv=config.attn_config.clip_qkv,
        )


class NeuronDbrxModel(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        def norm() -> LayerNorm:
            return LayerNorm(config.d_model, dtype=config.neuron_config.torch_dtype, bias=False)

        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            PreNormDecoderLayer(config, NeuronDbrxAttention(config), _mixture(config), norm)
            for _ in range(config.n_layers)
        )
        self.norm = norm()


def _mixture(config: InferenceConfig) -> MoE:
    ffn = config.ffn_config
    spec = MoESpec(
        hidden_size=config.d_model,
        intermediate_size=ffn.ffn_hidden_size,
        num_experts=ffn.moe_num_experts,
        top_k=ffn.moe_top_k,
        hidden_act=ffn.ffn_act_fn.get("name", "silu"),
        normalize=ffn.moe_normalize_expert_weights is not None,
    )
    return make_moe(config, spec)


class NeuronDbrxForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronDbrxModel
    _config_cls = DbrxInferenceConfig
    _STATE_DICT_MODEL_PREFIX = "transformer."

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        converted = {}
        for name, tensor in state_dict.items():
            for pattern, replacement in _NAMES:
                name = re.sub(pattern, replacement, name)
            converted[name] = tensor
        for name in [name for name in converted if name.endswith(".experts.w1")]:
            path, num_experts = name.removesuffix("w1"), config.ffn_config.moe_num_experts
            gate_up = [_by_expert(converted, f"{path}{part}", num_experts) for part in ("w1", "v1")]
            converted[f"{path}gate_up_proj"] = torch.cat(gate_up, dim=1).transpose(1, 2)
            converted[f"{path}down_proj"] = _by_expert(converted, f"{path}w2", num_experts)
        return converted


def _by_expert(state: dict[str, Tensor], name: str, num_experts: int) -> Tensor:
    """[E * I, H] -> [E, I, H], taken out of the checkpoint."""
    tensor = state.pop(name, None)
    if tensor is None or tensor.dim() != 2 or tensor.shape[0] % num_experts:
        shape = "not there" if tensor is None else f"of shape {tuple(tensor.shape)}"
        raise WeightError(
            f"{name} is {shape}; it must have the rows of {num_experts} experts: restore the "
            "checkpoint"
        )
    return tensor.view(num_experts, -1, tensor.shape[1])


_NAMES = (
    (r"^wte\.", "embed_tokens."),
    (r"^norm_f\.", "norm."),
    (r"^blocks\.", "layers."),
    (r"\.norm_attn_norm\.norm_1\.", ".input_layernorm."),
    (r"\.norm_attn_norm\.norm_2\.", ".post_attention_layernorm."),
    (r"\.norm_attn_norm\.attn\.Wqkv\.", ".self_attn.Wqkv."),
    (r"\.norm_attn_norm\.attn\.out_proj\.", ".self_attn.o_proj."),
    (r"\.ffn\.router\.layer\.", ".mlp.router."),
    (r"\.ffn\.experts\.mlp\.", ".mlp.experts."),
)
