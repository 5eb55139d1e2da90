from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from nxdi.tools.accuracy.trace import pair_modules, relative_errors, trace
from nxdi.types import Phase
from tiny_models import make_app, save_tiny, tiny_hf_model


def test_a_trace_holds_each_module_once() -> None:
    reference = tiny_hf_model("llama")
    text = torch.arange(1, 8)
    found = trace(reference, text, "model.")
    assert torch.equal(found.inputs["embed_tokens"], text)
    assert found.outputs["layers.1.self_attn"].shape == (7, 64)
    assert torch.equal(found.outputs["layers.0"], found.inputs["layers.1"])
    assert torch.equal(found.outputs["lm_head"], found.logits)
    assert found.outputs["rotary_emb"].shape == (7, 32)


def test_a_module_called_twice_is_left_out() -> None:
    reference = tiny_hf_model("llama")
    layers = reference.model.layers
    layers[1].mlp = layers[0].mlp
    found = trace(reference, torch.arange(1, 8), "model.")
    assert "layers.0.mlp" not in found.outputs
    assert "layers.0.mlp" not in found.inputs
    assert "layers.0.self_attn" in found.outputs


@pytest.mark.parametrize(
    ("family", "ours", "theirs"),
    [
        ("llama", "layers.0.self_attn.qkv_proj.q_proj", "layers.0.self_attn.q_proj"),
        ("llama", "layers.1.self_attn.rotary_emb", "rotary_emb"),
        ("qwen3", "layers.1.self_attn.q_layernorm", "layers.1.self_attn.q_norm"),
        ("gpt2", "layers.1.self_attn", "h.1.attn"),
        ("gpt2", "embed_tokens", "wte"),
        # There the reference calls two other modules by names that we have.
        ("glm4", "layers.0.post_attention_layernorm", "layers.0.post_self_attn_layernorm"),
        ("glm4", "layers.0.pre_feedforward_layernorm", "layers.0.post_attention_layernorm"),
    ],
)
def test_modules_are_paired_by_name_or_by_weights(
    family: str, ours: str, theirs: str, tmp_path: Path
) -> None:
    reference = tiny_hf_model(family)
    app = make_app(save_tiny(reference, tmp_path), seq_len=16)
    names = [name for name, _ in app.build(Phase.DECODE).named_modules()]
    known = trace(reference, torch.arange(1, 8), app._STATE_DICT_MODEL_PREFIX).outputs
    pairs = pair_modules(app, names, known)
    assert pairs[ours] == theirs
    assert set(pairs.values()) <= known.keys()


def test_errors_are_of_the_largest_value_of_their_token() -> None:
    expected = torch.tensor([[4.0, -8.0], [2.0, 0.0], [0.0, 0.0]])
    actual = torch.tensor([[4.0, -7.0], [2.5, 0.0], [0.0, 0.0]])
    assert relative_errors(actual, expected).tolist() == [0.125, 0.25, 0.0]


def test_a_token_of_no_size_is_measured_by_the_others() -> None:
    expected = torch.tensor([[1.0], [0.0]])
    assert relative_errors(torch.tensor([[1.0], [1e-6]]), expected)[1] == pytest.approx(1e-3)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_no_number_is_infinitely_wrong(wrong: float) -> None:
    assert relative_errors(torch.tensor([[1.0, wrong]]), torch.ones(1, 2)).tolist() == [math.inf]


def test_whole_numbers_are_right_or_wrong() -> None:
    assert relative_errors(torch.tensor([5, 150_001]), torch.tensor([5, 150_000])).tolist() == [
        0,
        1,
    ]
