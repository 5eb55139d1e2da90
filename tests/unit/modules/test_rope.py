from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.errors import ConfigError
from nxdi.modules.rope import RotaryEmbedding, apply_rotary, rope_from_config, rotate_half
from nxdi.runtime.weights import without_memory
from tiny_modules import drawn, tiny_config
from tolerances import ANGLE_FP32, SUM_ORDER_FP32

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def frequencies(dim: int, base: float) -> list[float]:
    return [base ** (-2 * pair / dim) for pair in range(dim // 2)]


def llama3_frequency(plain: float) -> float:
    """The rule as Llama 3.1 states it, for one frequency."""
    wavelength = 2 * math.pi / plain
    if wavelength < 32 / 4.0:
        return plain
    if wavelength > 32 / 1.0:
        return plain / 8.0
    smooth = (32 / wavelength - 1.0) / (4.0 - 1.0)
    return (1 - smooth) * plain / 8.0 + smooth * plain


def inv_freq(scaling: dict[str, Any] | None, head_dim: int = 16) -> Tensor:
    attributes = {"head_dim": head_dim, "rope_theta": 500.0, "rope_scaling": scaling}
    return rope_from_config(tiny_config(attributes)).inv_freq


@pytest.mark.parametrize("dim", [2, 8])
def test_angles_against_the_formula(dim: int) -> None:
    rope = RotaryEmbedding(dim, base=100.0)
    positions = torch.tensor([[0, 1, 2, 500], [7, 3, 1, 0]], dtype=torch.int32)
    cos, sin = rope(drawn(1), positions)
    angles = positions.double().unsqueeze(-1) * torch.tensor(frequencies(dim, 100.0) * 2).double()
    assert cos.shape == (2, 4, dim)
    torch.testing.assert_close(cos.double(), angles.cos(), rtol=0, atol=ANGLE_FP32)
    torch.testing.assert_close(sin.double(), angles.sin(), rtol=0, atol=ANGLE_FP32)


def test_tables_take_the_dtype_of_the_input_after_the_arithmetic() -> None:
    rope, positions = RotaryEmbedding(8), torch.tensor([[1001]])
    cos, _ = rope(drawn(1).to(torch.bfloat16), positions)
    assert cos.dtype == torch.bfloat16
    assert torch.equal(cos, rope(drawn(1), positions)[0].to(torch.bfloat16))


def test_attention_scaling_multiplies_both_tables() -> None:
    positions = torch.arange(4)[None]
    plain = RotaryEmbedding(8)(drawn(1), positions)
    scaled = RotaryEmbedding(8, attention_scaling=1.5)(drawn(1), positions)
    assert all(torch.equal(b, 1.5 * a) for a, b in zip(plain, scaled, strict=True))


def test_rotate_half() -> None:
    assert rotate_half(torch.tensor([1.0, 2, 3, 4])).tolist() == [-3, -4, 1, 2]


def test_each_pair_turns_as_a_complex_number() -> None:
    x, positions = drawn(2, 3, 5, 8), torch.arange(5).expand(2, 5)
    cos, sin = RotaryEmbedding(8)(x, positions)
    got = apply_rotary(x, cos, sin)
    turns = torch.polar(torch.ones(5, 4), positions[0].unsqueeze(1) * RotaryEmbedding(8).inv_freq)
    expected = torch.complex(x[..., :4], x[..., 4:]) * turns
    close = {"rtol": SUM_ORDER_FP32, "atol": SUM_ORDER_FP32}
    torch.testing.assert_close(got, torch.cat([expected.real, expected.imag], -1), **close)


def test_scores_depend_on_the_distance_only() -> None:
    q, k, rope = drawn(1, 1, 1, 8), drawn(1, 1, 1, 8, seed=1), RotaryEmbedding(8)

    def score(query_position: int, key_position: int) -> Tensor:
        turned = [
            apply_rotary(x, *rope(x, torch.tensor([[place]])))
            for x, place in ((q, query_position), (k, key_position))
        ]
        return (turned[0] * turned[1]).sum()

    close = {"rtol": SUM_ORDER_FP32, "atol": SUM_ORDER_FP32}
    torch.testing.assert_close(score(9, 4), score(25, 20), **close)
    assert abs(float(score(9, 4) - score(9, 5))) > 0.01


@pytest.mark.parametrize("scaling", [None, {"rope_type": "default"}, {"type": "default"}])
def test_plain(scaling: dict[str, Any] | None) -> None:
    torch.testing.assert_close(inv_freq(scaling), torch.tensor(frequencies(16, 500.0)))


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_linear(key: str) -> None:
    expected = torch.tensor(frequencies(16, 500.0)) / 4
    torch.testing.assert_close(inv_freq({key: "linear", "factor": 4}), expected)


def test_llama3() -> None:
    expected = [llama3_frequency(plain) for plain in frequencies(16, 500.0)]
    kept, stretched = frequencies(16, 500.0)[0], frequencies(16, 500.0)[-1] / 8
    assert (expected[0], expected[-1]) == (kept, stretched)
    assert any(a not in (b, b / 8) for a, b in zip(expected, frequencies(16, 500.0), strict=True))
    torch.testing.assert_close(inv_freq(LLAMA3), torch.tensor(expected))


def test_llama3_with_nothing_between() -> None:
    """As Llama 4 has it: waves up to the length it was trained on are kept, longer ones not."""
    plain = frequencies(16, 500.0)
    expected = [f if 2 * math.pi / f <= 64 else f / 8 for f in plain]
    assert expected[0] == plain[0]
    assert expected[-1] == plain[-1] / 8
    same = {"low_freq_factor": 1.0, "high_freq_factor": 1.0}
    trained = {"original_max_position_embeddings": 64}
    got = inv_freq({**LLAMA3, **same, **trained})
    torch.testing.assert_close(got, torch.tensor(expected))


def test_a_model_built_without_memory_has_real_tables() -> None:
    with without_memory():
        rope = rope_from_config(tiny_config({"rope_scaling": LLAMA3}))
    assert rope.inv_freq.device.type == "cpu"
    assert rope.state_dict() == {}


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "spiral"}, r"rope type 'spiral' is not known; known are \['default', 'lin"),
        ({}, "rope type None is not known"),
        ({"rope_type": "linear"}, "RoPE needs a positive factor, not None"),
        ({"rope_type": "linear", "factor": 0}, "needs a positive factor, not 0"),
        ({"rope_type": "linear", "factor": True}, "needs a positive factor, not True"),
        ({"rope_type": "linear", "factor": "4"}, "needs a positive factor, not '4'"),
        (
            {**LLAMA3, "original_max_position_embeddings": None},
            "needs a positive original_max_position_embeddings, not None",
        ),
        (
            {**LLAMA3, "low_freq_factor": 5.0},
            "low_freq_factor=5.0 must not be above high_freq_factor=4.0",
        ),
    ],
)
def test_descriptions_that_make_no_sense(scaling: dict[str, Any], message: str) -> None:
    config = tiny_config()
    config.rope_scaling = scaling or {"rope_type": None}
    with pytest.raises(ConfigError, match=message):
        rope_from_config(config)
