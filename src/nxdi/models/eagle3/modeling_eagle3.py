"""EAGLE-3: a decoder layer that predicts from three layers of its target.

Source: arXiv:2503.01840; weights as the authors publish them, of heads for decoders with Llama's
layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.graph.inputs import BATCH, TOKENS, InputSpec
from nxdi.graph.plan import FEATURES, IS_OWN
from nxdi.models.decoder import Decoder
from nxdi.models.draft_head import EMBEDDING, NeuronDraftHead
from nxdi.models.llama.modeling_llama import NeuronLlamaAttention
from nxdi.modules.context import LayerContext
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import embedding
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import hidden_norm
from nxdi.parallel_layers.layers import ColumnParallelLinear


class Eagle3Layer(PreNormDecoderLayer):
    """A layer whose attention sees embedding and features side by side.

    Shapes: x [B, S, 2 * hidden_size] -> [B, S, hidden_size].
    """

    def __init__(self, config: InferenceConfig) -> None:
        attention = NeuronLlamaAttention(config, 2 * config.hidden_size)
        super().__init__(config, attention, GatedMLP(config))
        self.hidden_norm = hidden_norm(config)

    def forward(self, x: Tensor, *, ctx: LayerContext) -> Tensor:
        embedded, features = x.chunk(2, dim=-1)
        seen = torch.cat([self.input_layernorm(embedded), self.hidden_norm(features)], dim=-1)
        x = features + self.self_attn(seen, ctx=ctx).hidden_states
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Eagle3Model(Decoder):
    """EAGLE-3: features of three layers of the target, one layer, a vocabulary of its own.

    draft_tokens [draft_vocab_size] int32: the token of each of its logits.
    """

    def init_model(self, config: InferenceConfig) -> None:
        dtype = config.neuron_config.torch_dtype
        self.embed_tokens = embedding(config, config.vocab_size)
        self.fc = ColumnParallelLinear(
            config.feature_size, config.hidden_size, bias=False, gather_output=True, dtype=dtype
        )
        self.layers = nn.ModuleList([Eagle3Layer(config)])
        self.norm = hidden_norm(config)
        size = config.draft_vocab_size
        self.lm_head = ColumnParallelLinear(
            config.hidden_size, size, bias=False, gather_output=True, dtype=dtype, pad=True
        )
        tokens = torch.empty(size, dtype=torch.int32)
        self.draft_tokens = nn.Parameter(tokens, requires_grad=False)

    @property
    def composes(self) -> bool:
        """No: pieces are compiled for layers that give as much as they are given."""
        return False

    def embed(self, inputs: Any) -> Tensor:
        x = super().embed(inputs)
        features = inputs[FEATURES].to(x.dtype)
        own = features[..., : x.shape[-1]]
        features = torch.where(inputs[IS_OWN].bool().unsqueeze(-1), own, self.fc(features))
        return torch.cat([x, features], dim=-1)

    def logits(self, x: Tensor) -> Tensor:
        """Of the target's whole vocabulary; a token that the head does not know has none."""
        own = self.lm_head(x).squeeze(1).float()[..., : self.config.draft_vocab_size]
        unknown = own.new_full((own.shape[0], self.config.vocab_size), torch.finfo(own.dtype).min)
        whole: Tensor = unknown.index_copy(1, self.draft_tokens.long(), own)
        return whole


class NeuronEagle3ForCausalLM(NeuronDraftHead):
    """A head of EAGLE-3; its steps take `is_own` as well."""

    _model_cls = Eagle3Model
    _SHARED = (EMBEDDING,)

    def extra_inputs(self) -> tuple[InputSpec, ...]:
        return (*super().extra_inputs(), InputSpec(IS_OWN, (BATCH, TOKENS), "int32", 0))

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        """`d2t` says how far each of the head's tokens is from the target's of that number."""
        state = {name.replace("midlayer.", "layers.0."): t for name, t in state_dict.items()}
        state.pop("t2d", None)
        size = config.draft_vocab_size
        offsets = state.pop("d2t", None)
        own = torch.arange(size, dtype=torch.int32)
        state["draft_tokens"] = own if offsets is None else own + offsets.to("cpu", torch.int32)
        return state
