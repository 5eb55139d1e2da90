"""`nxdi check` finds each of these faults, and names the layer and the module that hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golden.test_faults import (
    dropped_bias,
    last_column,
    late_positions,
    lost_cache_write,
    lost_partial_sum,
    neighbours_cache_row,
    visible_padding,
    window_off_by_one,
    window_that_does_not_roll,
)
from nxdi.kernels.masks import Causal
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.decoder import Decoder
from nxdi.modules.attention.attend import Attend
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.kvcache import contiguous
from nxdi.modules.mlp import GatedMLP
from nxdi.tools.accuracy.layers import Divergence, find_divergence
from nxdi.tools.accuracy.report import random_prompts
from tiny_models import FAMILIES, VOCAB_SIZE, make_app, save_tiny, tiny_hf_model

Patch = pytest.MonkeyPatch
State = dict[str, Tensor]

NUM_TOKENS = 4
OPTIONS: dict[str, Any] = {
    "seq_len": 64,
    "max_context_length": 32,
    "batch_size": 2,
    "enable_bucketing": True,
    "context_encoding_buckets": [32],
    "token_generation_buckets": [64],
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_hidden_layers": 3}),
    "linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    **{family: (family, {}) for family in FAMILIES if family != "llama"},
}


def wrong_scale(patch: Patch) -> None:
    right = NeuronAttentionBase._scale
    patch.setattr(NeuronAttentionBase, "_scale", lambda self, *given: 1.01 * right(self, *given))


def heads_in_another_order(patch: Patch) -> None:
    """Query heads that share a key/value head lie apart instead of side by side."""
    right = Attend.__call__

    def wrong(self: Attend, q: Tensor, attended: Any, *rest: Any) -> Tensor:
        num_kv = attended.keys.shape[1]
        order = torch.arange(q.shape[1]).view(-1, num_kv).T.flatten()
        return right(self, q[:, order], attended, *rest)[:, order.argsort()]

    patch.setattr(Attend, "__call__", wrong)


def no_residual(patch: Patch) -> None:
    def wrong(self: PreNormDecoderLayer, x: Tensor, *, ctx: Any) -> Tensor:
        x = self.self_attn(self.input_layernorm(x), ctx=ctx).hidden_states
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out

    patch.setattr(PreNormDecoderLayer, "forward", wrong)


def no_second_residual(patch: Patch) -> None:
    def wrong(self: PreNormDecoderLayer, x: Tensor, *, ctx: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), ctx=ctx).hidden_states
        out: Tensor = self.mlp(self.post_attention_layernorm(x))
        return out

    patch.setattr(PreNormDecoderLayer, "forward", wrong)


def up_not_multiplied(patch: Patch) -> None:
    patch.setattr(GatedMLP, "forward", lambda self, x: self.down_proj(self.act(self.gate_proj(x))))


def scaled_logits(patch: Patch) -> None:
    right = Decoder.logits
    patch.setattr(Decoder, "logits", lambda self, x: 1.1 * right(self, x))


def scaled_embedding(patch: Patch) -> None:
    right = Decoder.embed
    patch.setattr(Decoder, "embed", lambda self, inputs: 1.1 * right(self, inputs))


def sees_one_ahead(patch: Patch) -> None:
    right = Causal.allowed
    patch.setattr(Causal, "allowed", lambda self, q, k: right(self, q + 1, k))


def blind_to_the_first(patch: Patch) -> None:
    right = Causal.allowed
    patch.setattr(Causal, "allowed", lambda self, q, k: right(self, q, k) & (k != 0).unsqueeze(1))


def one_slot_off(patch: Patch) -> None:
    right = contiguous.write_slots

    def wrong(cache: Tensor, new: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        return right(cache, new, rows, torch.where(slots < cache.shape[2] - 1, slots + 1, slots))

    patch.setattr(contiguous, "write_slots", wrong)


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], None]:
    def apply(state: State) -> None:
        state[name] = change(state[name])

    return apply


def gate_and_up_swapped(state: State) -> None:
    gate, up = "layers.2.mlp.gate_proj.weight", "layers.2.mlp.up_proj.weight"
    state[gate], state[up] = state[up], state[gate]


def tied_though_it_is_not(state: State) -> None:
    state["lm_head.weight"] = state["embed_tokens.weight"]


@dataclass(frozen=True)
class Fault:
    """A fault in the code, the weights or the config, and what is to be found.

    module: "layers.0.self_attn" also for what lies in it; token: the generated token it shows at.
    """

    module: str
    token: int = 0
    variant: str = "llama"
    code: Callable[[Patch], None] = lambda patch: None
    weights: Callable[[State], None] = lambda state: None
    config: Mapping[str, Any] = field(default_factory=dict)
    tp_degree: int = 1


ATTENTION = "layers.0.self_attn"
FAULTS = {
    "wrong rope base": Fault(f"{ATTENTION}.rotary_emb", config={"rope_theta": 9900.0}),
    "no rope scaling": Fault(
        f"{ATTENTION}.rotary_emb", variant="linear", config={"rope_scaling": None}
    ),
    "late positions": Fault(f"{ATTENTION}.rotary_emb", token=1, code=late_positions),
    "transposed weight": Fault(
        "layers.1.self_attn.qkv_proj.q_proj",
        weights=replaced("layers.1.self_attn.q_proj.weight", lambda w: w.T),
    ),
    "missing bias": Fault(f"{ATTENTION}.qkv_proj.q_proj", variant="qwen2", code=dropped_bias),
    "zero bias in one layer": Fault(
        "layers.1.self_attn.qkv_proj.v_proj",
        variant="qwen2",
        weights=replaced("layers.1.self_attn.v_proj.bias", torch.zeros_like),
    ),
    "wrong attention scale": Fault(ATTENTION, code=wrong_scale),
    "wrong heads": Fault(ATTENTION, code=heads_in_another_order),
    "key/value heads swapped": Fault(
        "layers.2.self_attn.qkv_proj.k_proj",
        weights=replaced("layers.2.self_attn.k_proj.weight", lambda w: w.roll(16, 0)),
    ),
    "gate and up swapped": Fault("layers.2.mlp.gate_proj", weights=gate_and_up_swapped),
    "wrong activation": Fault("layers.0.mlp", config={"hidden_act": "gelu"}),
    "up not multiplied": Fault("layers.0.mlp", code=up_not_multiplied),
    "experts in another order": Fault(
        "layers.1.mlp",
        variant="mixtral",
        weights=replaced("layers.1.mlp.experts.down_proj", lambda w: w.roll(1, 0)),
    ),
    "no residual": Fault("layers.0", code=no_residual),
    "no second residual": Fault("layers.0", code=no_second_residual),
    "wrong norm eps": Fault("layers.0.input_layernorm", config={"rms_norm_eps": 1e-3}),
    "no norm weight": Fault(
        "layers.1.post_attention_layernorm",
        weights=replaced("layers.1.post_attention_layernorm.weight", torch.ones_like),
    ),
    "no final norm weight": Fault("norm", weights=replaced("norm.weight", torch.ones_like)),
    "no window": Fault(ATTENTION, variant="mistral", config={"sliding_window": None}),
    "narrow window": Fault(ATTENTION, variant="mistral", code=window_off_by_one),
    "window that does not roll": Fault(
        ATTENTION, token=1, variant="mistral", code=window_that_does_not_roll
    ),
    "mask sees one ahead": Fault(ATTENTION, code=sees_one_ahead),
    "mask hides the first": Fault(ATTENTION, code=blind_to_the_first),
    "padding is seen": Fault(ATTENTION, code=visible_padding),
    "stale cache": Fault(ATTENTION, token=2, code=lost_cache_write),
    "cache one slot off": Fault(ATTENTION, token=1, code=one_slot_off),
    "embedding rows off by one": Fault(
        "embed_tokens", weights=replaced("embed_tokens.weight", lambda w: w.roll(1, 0))
    ),
    "scaled embedding": Fault("model", code=scaled_embedding),
    "tied though it is not": Fault("lm_head", weights=tied_though_it_is_not),
    "lm_head rows off by one": Fault(
        "lm_head", weights=replaced("lm_head.weight", lambda w: w.roll(1, 0))
    ),
    "scaled lm_head": Fault("lm_head", weights=replaced("lm_head.weight", lambda w: 1.001 * w)),
    "scaled logits": Fault("logits", code=scaled_logits),
    "last column instead of last token": Fault("model", code=last_column),
    "a neighbour's row": Fault("model", token=1, code=neighbours_cache_row),
    "lost partial sum": Fault(ATTENTION, code=lost_partial_sum, tp_degree=2),
    "transposed weight, 2 ranks": Fault(
        "layers.1.self_attn",
        weights=replaced("layers.1.self_attn.q_proj.weight", lambda w: w.T),
        tp_degree=2,
    ),
    "stale cache, 2 ranks": Fault(ATTENTION, token=2, code=lost_cache_write, tp_degree=2),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The model folder of a variant."""

    @cache
    def make(name: str) -> Path:
        family, overrides = VARIANTS[name]
        return save_tiny(tiny_hf_model(family, **overrides), tmp_path_factory.mktemp(name))

    return make


def check(folder: Path, tp_degree: int, config: Mapping[str, Any] = {}) -> Divergence | None:
    app = make_app(folder, tp_degree=tp_degree, **OPTIONS)
    for name, value in config.items():
        assert hasattr(app.config, name)
        setattr(app.config, name, value)
    app.compile(folder / "artifact", progress=False)
    app.load(folder / "artifact")
    report = find_divergence(app, random_prompts(2, 30, VOCAB_SIZE), NUM_TOKENS)
    assert len(report.modules) > 0
    return report.divergence


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_where_it_is(
    name: str, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAULTS[name]
    right = NeuronApplicationBase.get_state_dict

    def state(self: NeuronBaseForCausalLM) -> State:
        loaded = right(self)
        fault.weights(loaded)
        return loaded

    monkeypatch.setattr(NeuronApplicationBase, "get_state_dict", state)
    fault.code(monkeypatch)
    found = check(folder_of(fault.variant), fault.tp_degree, fault.config)
    assert found is not None
    assert found.module == fault.module, str(found)
    assert found.token == fault.token, str(found)
    assert found.phase == ("decode" if fault.token else "prefill")
    layer = fault.module.split(".")[1] if fault.module.startswith("layers.") else None
    assert found.layer == (None if layer is None else int(layer))


def test_there_are_enough_faults() -> None:
    assert len(FAULTS) >= 20


@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_right_model_passes(name: str, tp_degree: int, folder_of: Callable[[str], Path]) -> None:
    assert check(folder_of(name), tp_degree) is None
