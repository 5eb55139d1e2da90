"""Phi-3, Phi-3.5 and Phi-4: Llama's decoder with fused weights, LongRoPE and partial rotation.

With LongRoPE a sequence of up to `original_max_position_embeddings` tokens is turned by the short
factors, a longer one by the long factors, all its tokens alike; each row counts for itself. A
sequence that grows past that length is prefilled anew once, which `generate` does.

Source: arXiv:2404.14219, arXiv:2402.13753; weights as in Hugging Face's Phi3ForCausalLM.
"""

from __future__ import annotations

from torch import Tensor

from nxdi.config import InferenceConfig
from nxdi.models.mistral.modeling_mistral import MistralInferenceConfig, NeuronMistralModel
from nxdi.models.model_base import NeuronBaseForCausalLM


class NeuronPhi3ForCausalLM(NeuronBaseForCausalLM):
    """Mistral's model: what is Phi-3's own lies in the config and in the names of the weights."""

    _model_cls = NeuronMistralModel
    _config_cls = MistralInferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        converted = {}
        for name, tensor in state_dict.items():
            if ".gate_up_proj." in name:
                gate, up = tensor.chunk(2)
                converted[name.replace(".gate_up_proj.", ".gate_proj.")] = gate
                converted[name.replace(".gate_up_proj.", ".up_proj.")] = up
            else:
                converted[name.replace(".qkv_proj.", ".Wqkv.")] = tensor
        return converted
