"""EAGLE: a decoder layer that predicts from the last activations of its target.

Source: arXiv:2401.15077; weights as the authors publish them, of heads for decoders with Llama's
layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.graph.plan import FEATURES
from nxdi.models.decoder import Decoder
from nxdi.models.draft_head import NeuronDraftHead
from nxdi.models.llama.modeling_llama import NeuronLlamaAttention
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.parallel_layers.layers import ColumnParallelLinear


class EagleModel(Decoder):
    """EAGLE: embedding and features are joined to one activation, and one layer or more follow.

    The first layer has no norm before its attention, unless `enable_eagle_draft_input_norm`.
    """

    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.fc = ColumnParallelLinear(
            2 * config.hidden_size,
            config.hidden_size,
            bias=True,
            gather_output=True,
            dtype=config.neuron_config.torch_dtype,
        )
        layers = []
        for _ in range(config.num_hidden_layers):
            attention = NeuronLlamaAttention(config)
            layers.append(PreNormDecoderLayer(config, attention, GatedMLP(config)))
        if not config.neuron_config.enable_eagle_draft_input_norm:
            layers[0].input_layernorm = nn.Identity()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.Identity()

    def embed(self, inputs: Any) -> Tensor:
        x = super().embed(inputs)
        joined: Tensor = self.fc(torch.cat([x, inputs[FEATURES].to(x.dtype)], dim=-1))
        return joined


class NeuronEagleForCausalLM(NeuronDraftHead):
    _model_cls = EagleModel

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        if "fc.weight" in state_dict and "fc.bias" not in state_dict:
            weight = state_dict["fc.weight"]
            state_dict["fc.bias"] = weight.new_zeros(weight.shape[0])
        return state_dict
