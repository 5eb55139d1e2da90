"""Granite 3: Llama's decoder with four multipliers, on embeddings, scores, residuals and logits.

Source: the Granite 3.0 language models report (IBM, 2024), section 2; the multipliers keep the
scale of activations independent of the size of the model (arXiv:2203.03466). Weights as in Hugging
Face's GraniteForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.context import LayerContext
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import RMSNorm
from nxdi.modules.rope import rope_from_config


class GraniteInferenceConfig(LlamaInferenceConfig):
    """Llama's attributes and the multipliers; `logits_scaling` divides."""

    def get_required_attributes(self) -> list[str]:
        return [
            *super().get_required_attributes(),
            "embedding_multiplier",
            "attention_multiplier",
            "residual_multiplier",
            "logits_scaling",
        ]


class NeuronGraniteAttention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig) -> None:
        has_bias = getattr(config, "attention_bias", False)
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config),
            qkv_bias=has_bias,
            o_bias=has_bias,
            scale=config.attention_multiplier,
        )


class NeuronGraniteDecoderLayer(PreNormDecoderLayer):
    """The pre-norm layer, with what each block adds multiplied by `residual_multiplier`."""

    def __init__(self, config: InferenceConfig) -> None:
        mlp = GatedMLP(config, bias=getattr(config, "mlp_bias", False))
        super().__init__(config, NeuronGraniteAttention(config), mlp)
        self.residual_multiplier = config.residual_multiplier

    def forward(self, x: Tensor, *, ctx: LayerContext) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), ctx=ctx).hidden_states
        x = x + attended * self.residual_multiplier
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x)) * self.residual_multiplier
        return out


class NeuronGraniteModel(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            NeuronGraniteDecoderLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )

        self.embedding_multiplier: float = config.embedding_multiplier
        self.logits_scaling: float = config.logits_scaling

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return super().embed(inputs) * self.embedding_multiplier

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) / self.logits_scaling


class NeuronGraniteForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronGraniteModel
    _config_cls = GraniteInferenceConfig
