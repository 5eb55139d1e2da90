"""EAGLE and EAGLE-3: a decoder layer that predicts from its target's activations.

The head goes over pairs: the features of a token, as the target has left them, and the token that
follows it. After each pair it predicts the next token, and features of its own, with which it goes
on where the target has not been yet.

Source: arXiv:2401.15077, arXiv:2503.01840; weights as the authors publish them, of heads for
decoders with Llama's layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.errors import ConfigError, WeightError
from nxdi.graph.inputs import BATCH, TOKENS, InputSpec
from nxdi.graph.plan import FEATURES
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.decoder import Decoder
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.context import LayerContext
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends, embedding
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import RMSNorm
from nxdi.modules.rope import rope_from_config
from nxdi.parallel_layers.layers import ColumnParallelLinear
from nxdi.runtime.checkpoint import find_checkpoint, read_checkpoint
from nxdi.runtime.prequantized.source import WeightsSource

# Which tokens have features of the head's own, of the hidden size, where others have the target's.
IS_OWN = "is_own"
_ENDS = ("embed_tokens.weight", "lm_head.weight")


class EagleInferenceConfig(LlamaInferenceConfig):
    """Llama's attributes. `target_model_path`: the folder that has what the head's own lacks."""

    target_model_path: str | None = None

    def add_derived_config(self) -> None:
        super().add_derived_config()
        self.architectures = ["eagle3" if self.neuron_config.is_eagle3 else "eagle"]
        if self.neuron_config.sequence_parallel_enabled:
            raise ConfigError(
                "sequence_parallel_enabled=True splits tokens that an EAGLE head takes whole; "
                "leave it out for the head"
            )

    @property
    def feature_size(self) -> int:
        """Elements of the features of a token, as the target returns them."""
        num_layers = 3 if self.neuron_config.is_eagle3 else 1
        return num_layers * int(getattr(self, "target_hidden_size", None) or self.hidden_size)


def _attention(config: InferenceConfig, input_size: int) -> NeuronAttentionBase:
    has_bias = getattr(config, "attention_bias", False)
    return NeuronAttentionBase(
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


def _norm(config: InferenceConfig) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype)


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
            attention = _attention(config, config.hidden_size)
            layers.append(PreNormDecoderLayer(config, attention, GatedMLP(config)))
        if not config.neuron_config.enable_eagle_draft_input_norm:
            layers[0].input_layernorm = nn.Identity()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.Identity()

    def embed(self, inputs: Any) -> Tensor:
        x = super().embed(inputs)
        joined: Tensor = self.fc(torch.cat([x, inputs[FEATURES].to(x.dtype)], dim=-1))
        return joined


class Eagle3Layer(PreNormDecoderLayer):
    """A layer whose attention sees embedding and features side by side.

    Shapes: x [B, S, 2 * hidden_size] -> [B, S, hidden_size].
    """

    def __init__(self, config: InferenceConfig) -> None:
        attention = _attention(config, 2 * config.hidden_size)
        super().__init__(config, attention, GatedMLP(config))
        self.hidden_norm = _norm(config)

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
        self.norm = _norm(config)
        size = config.draft_vocab_size
        self.lm_head = ColumnParallelLinear(
            config.hidden_size, size, bias=False, gather_output=True, dtype=dtype, pad=True
        )
        tokens = torch.empty(size, dtype=torch.int32)
        self.draft_tokens = nn.Parameter(tokens, requires_grad=False)

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


class NeuronEagleForCausalLM(NeuronBaseForCausalLM):
    """A draft head with graphs of its own; its steps take `features` in `extras`.

    Its embedding and lm_head are the target's where its own folder has none.
    """

    _model_cls: type[Decoder] = EagleModel
    _config_cls = EagleInferenceConfig

    def extra_inputs(self) -> tuple[InputSpec, ...]:
        size = self.config.feature_size
        return (InputSpec(FEATURES, (BATCH, TOKENS, size), "float32", 0),)

    def extra_files(self) -> list[Path]:
        target = self.config.target_model_path
        return find_checkpoint(Path(target)) if target else []

    def _state(self, source: WeightsSource, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        state = super()._state(source, stored)
        if source.is_converted:
            return state
        missing = [name for name in self._shared if name not in state]
        return {**state, **(self._of_target(missing) if missing else {})}

    @property
    def _shared(self) -> tuple[str, ...]:
        """What a head's folder may leave to its target's."""
        return _ENDS

    def _of_target(self, names: list[str]) -> dict[str, Tensor]:
        path = self.config.target_model_path
        if path is None:
            raise WeightError(
                f"{self.model_path} has no {' and no '.join(names)}; give target_model_path, the "
                "folder of the target, which has them"
            )
        stored = read_checkpoint(Path(path))
        state = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
        state.setdefault(_ENDS[1], state.get(_ENDS[0]))  # type: ignore[arg-type]  # checked below
        lacking = [name for name in names if state.get(name) is None]
        if lacking:
            raise WeightError(
                f"neither {self.model_path} nor the target's folder {path} has "
                f"{' or '.join(lacking)}; copy them to the head's folder"
            )
        return {name: state[name] for name in names}

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        if "fc.weight" in state_dict and "fc.bias" not in state_dict:
            weight = state_dict["fc.weight"]
            state_dict["fc.bias"] = weight.new_zeros(weight.shape[0])
        return state_dict


class NeuronEagle3ForCausalLM(NeuronEagleForCausalLM):
    """A head of EAGLE-3; its steps take `is_own` as well."""

    _model_cls: type[Decoder] = Eagle3Model

    def extra_inputs(self) -> tuple[InputSpec, ...]:
        return (*super().extra_inputs(), InputSpec(IS_OWN, (BATCH, TOKENS), "int32", 0))

    @property
    def _shared(self) -> tuple[str, ...]:
        return _ENDS[:1]

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
