"""Which Llama 4 configs are served, and what their layers are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Llama4TextConfig

from nxdi.config import MoENeuronConfig, load_pretrained_config
from nxdi.errors import ConfigError
from nxdi.kernels.masks import Causal, Chunked
from nxdi.models.llama4.modeling_llama4 import (
    Llama4InferenceConfig,
    NeuronLlama4Model,
    NeuronLlama4TunedAttention,
)
from nxdi.modules.kvcache import ChunkedCache, ContiguousCache
from nxdi.modules.moe import MoE
from tiny_modules import drawn

SHAPE: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 4,
    "intermediate_size_mlp": 20,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "attention_chunk_size": 8,
}


def config(seq_len: int = 32, **attributes: Any) -> Llama4InferenceConfig:
    hf_config = Llama4TextConfig(**{**SHAPE, "moe_layers": [], **attributes})
    neuron = MoENeuronConfig(seq_len=seq_len, torch_dtype=torch.float32)
    return Llama4InferenceConfig(neuron, load_config=load_pretrained_config(hf_config=hf_config))


def test_every_fourth_layer_sees_everything() -> None:
    layers = NeuronLlama4Model(config()).layers
    attention = [layer.self_attn for layer in layers]
    chunked, whole = ChunkedCache(2, 8, (4, 4)), ContiguousCache(2, 32, (4, 4))
    assert [a.attend.mask for a in attention] == [Chunked(8)] * 3 + [Causal()]
    assert [a.cache_layout for a in attention] == [chunked] * 3 + [whole]
    assert [a.rotary_emb is None for a in attention] == [False] * 3 + [True]
    assert [a.q_layernorm is None for a in attention] == [False] * 3 + [True]
    assert {tuple(layer.mlp.gate_proj.weight.shape) for layer in layers} == {(20, 16)}


def test_a_chunk_that_no_sequence_leaves() -> None:
    layers = NeuronLlama4Model(config(seq_len=8)).layers
    assert {layer.self_attn.attend.mask for layer in layers} == {Causal()}


def test_queries_grow_with_their_position() -> None:
    tuned = NeuronLlama4Model(config(floor_scale=4, attn_scale=0.5)).layers[3].self_attn
    assert isinstance(tuned, NeuronLlama4TunedAttention)
    q, where = drawn(1, 4, 5, 4), torch.tensor([[-1, 0, 2, 3, 10]], dtype=torch.int32)
    got, k, _, _ = tuned.apply_rotary_embedding(q, q, q, where, None, None)
    steps = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0])
    torch.testing.assert_close(got, q * (1 + 0.5 * torch.log(1 + steps))[:, None])
    assert k is q
    plain = NeuronLlama4Model(config(attn_temperature_tuning=False)).layers[3].self_attn
    assert not isinstance(plain, NeuronLlama4TunedAttention)


@pytest.mark.parametrize(
    ("attributes", "layers"),
    [
        ({"moe_layers": [1, 3]}, [1, 3]),
        ({"moe_layers": None}, [0, 1, 2, 3]),  # transformers makes a list of it
        ({"moe_layers": None, "interleave_moe_layer_step": 2}, [1, 3]),
    ],
)
def test_which_layers_have_experts(attributes: dict[str, Any], layers: list[int]) -> None:
    made = NeuronLlama4Model(config(num_local_experts=2, **attributes)).layers
    assert [i for i, layer in enumerate(made) if isinstance(layer.mlp, MoE)] == layers
    assert all(made[i].mlp.shared_experts is not None for i in layers)


@pytest.mark.parametrize("attributes", [{"moe_layers": [4]}, {"interleave_moe_layer_step": 5}])
def test_experts_beyond_the_last_layer_are_none(attributes: dict[str, Any]) -> None:
    assert config(**{"moe_layers": None, **attributes}).num_hidden_layers == 4


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"attention_chunk_size": None}, "attention_chunk_size is None; give its size"),
        (
            {"no_rope_layers": [1, 0, 1], "layer_types": ["full_attention"] * 4},
            "no_rope_layers has 3 entries, num_hidden_layers=4",
        ),
    ],
)
def test_configs_that_make_no_sense(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**attributes)
