"""Mixtral: Mistral's decoder with a mixture of experts in place of each MLP.

Source: arXiv:2401.04088; weights as in Hugging Face's MixtralForCausalLM, of transformers 4 and 5.
"""

from __future__ import annotations

from torch import Tensor, nn

from nxdi.config import InferenceConfig, MoENeuronConfig, NeuronConfig
from nxdi.models.mistral.modeling_mistral import MistralInferenceConfig, NeuronMistralAttention
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.moe import MoE, MoESpec, fuse_experts, make_moe
from nxdi.modules.norm import RMSNorm


class MixtralInferenceConfig(MistralInferenceConfig):
    """Mistral's attributes and the experts, of which each has `intermediate_size`."""

    def get_required_attributes(self) -> list[str]:
        own = ["num_local_experts", "num_experts_per_tok"]
        return [*super().get_required_attributes(), *own]

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        return MoENeuronConfig


class NeuronMixtralModel(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            PreNormDecoderLayer(config, NeuronMistralAttention(config), _mixture(config))
            for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


def _mixture(config: InferenceConfig) -> MoE:
    spec = MoESpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_experts=config.num_local_experts,
        top_k=config.num_experts_per_tok,
        hidden_act=config.hidden_act,
    )
    return make_moe(config, spec)


class NeuronMixtralForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronMixtralModel
    _config_cls = MixtralInferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        renamed = {
            name.replace(".block_sparse_moe.", ".mlp.").replace(
                ".mlp.gate.", ".mlp.router."
            ): tensor
            for name, tensor in state_dict.items()
        }
        return fuse_experts(renamed, names=("w1", "w3", "w2"))
