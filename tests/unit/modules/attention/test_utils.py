from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nxdi.modules.attention.utils import (
    RotaryEmbedding,
    apply_rotary_polar_compatible,
    apply_rotary_pos_emb,
    manual_softmax,
    move_heads_front,
    precompute_freqs_cis,
    repeat_kv,
    rotate_half,
)
from tiny_modules import drawn
from tolerances import ANGLE_FP32, ATTENTION_FP32

POSITIONS = torch.tensor([[0, 1, 7], [3, 4, 5]])


class Seen(nn.Module):
    """Doubles, and keeps the shape it was given."""

    def forward(self, x: Tensor) -> Tensor:
        self.shape = tuple(x.shape)
        return 2 * x


def test_heads_move_to_the_front() -> None:
    x = drawn(2, 3, 4 * 5)
    moved = move_heads_front(x, 2, 3, 4, 5)
    assert moved.shape == (2, 4, 3, 5)
    assert torch.equal(moved[1, 2, 0], x[1, 0, 10:15])


@pytest.mark.parametrize(("after", "shape"), [(False, (2, 3, 4, 5)), (True, (2, 4, 3, 5))])
def test_heads_are_normalised_before_or_after_they_move(
    after: bool, shape: tuple[int, ...]
) -> None:
    norm, x = Seen(), drawn(2, 3, 4 * 5)
    moved = move_heads_front(x, 2, 3, 4, 5, norm, after)
    assert norm.shape == shape
    assert torch.equal(moved, 2 * move_heads_front(x, 2, 3, 4, 5))


def angles(rope: RotaryEmbedding) -> Tensor:
    cos, sin = rope(drawn(1), POSITIONS)
    return torch.atan2(sin, cos)


def test_rotary_embedding() -> None:
    rope = RotaryEmbedding(4, max_position_embeddings=16, base=100.0)
    rope.prepare()
    cos, sin = rope(drawn(1), POSITIONS)
    expected = POSITIONS[..., None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
    torch.testing.assert_close(cos, expected.cos(), rtol=0, atol=ANGLE_FP32)
    torch.testing.assert_close(sin, expected.sin(), rtol=0, atol=ANGLE_FP32)
    assert rope.state_dict() == {}


def test_a_factor_divides_the_positions() -> None:
    plain, slow = RotaryEmbedding(4, base=100.0), RotaryEmbedding(4, base=100.0, factor=10.0)
    torch.testing.assert_close(10 * slow.get_inv_freqs(), plain.get_inv_freqs())


@pytest.mark.parametrize(("heads_at", "shape"), [(1, (2, 5, 3, 4)), (2, (2, 3, 5, 4))])
def test_halves_are_turned(heads_at: int, shape: tuple[int, ...]) -> None:
    rope = RotaryEmbedding(4, base=100.0)
    rope.prepare()
    cos, sin = rope(drawn(1), POSITIONS)
    q, k = drawn(*shape), drawn(*shape, seed=1)
    turned = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=heads_at)
    where = POSITIONS.unsqueeze(heads_at)[..., None] * rope.inv_freq
    for x, got in zip((q, k), turned, strict=True):
        pairs = torch.complex(x[..., :2], x[..., 2:]) * torch.polar(torch.ones_like(where), where)
        expected = torch.cat([pairs.real, pairs.imag], dim=-1)
        torch.testing.assert_close(got, expected, rtol=0, atol=ATTENTION_FP32)


def test_rotate_half() -> None:
    assert rotate_half(torch.tensor([1.0, 2, 3, 4])).tolist() == [-3, -4, 1, 2]


def test_neighbours_are_turned() -> None:
    freqs = precompute_freqs_cis(4, 8, theta=100.0)
    assert freqs.shape == (8, 2, 2)
    q, k = drawn(2, 3, 5, 4), drawn(2, 3, 1, 4, seed=1)
    where = POSITIONS[:, :, None, None] * torch.tensor([1.0, 0.1])
    for x, got in zip((q, k), apply_rotary_polar_compatible(q, k, freqs[POSITIONS]), strict=True):
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(where), where))
        torch.testing.assert_close(got, expected.flatten(-2), rtol=0, atol=ATTENTION_FP32)


def test_scaled_frequencies_are_llama_3_1s() -> None:
    plain, scaled = (precompute_freqs_cis(128, 2, 500000.0, use) for use in (False, True))
    speed, slower = (torch.atan2(f[1, :, 1], f[1, :, 0]) for f in (plain, scaled))
    torch.testing.assert_close(slower[0], speed[0])  # a short wave is kept
    torch.testing.assert_close(8 * slower[-1], speed[-1])  # a long one is stretched


def test_repeat_kv() -> None:
    x = drawn(2, 3, 4, 5)
    repeated = repeat_kv(x, 2)
    assert repeated.shape == (2, 6, 4, 5)
    for head in range(6):
        assert torch.equal(repeated[:, head], x[:, head // 2])


def test_one_softmax_over_two_groups_of_keys() -> None:
    prior, active = drawn(2, 3, 1, 7), drawn(2, 3, 1, 2, seed=1)
    parts = manual_softmax(prior, active)
    assert [part.shape[-1] for part in parts] == [7, 2]
    whole = torch.softmax(torch.cat([prior, active], dim=-1), dim=-1)
    assert torch.equal(torch.cat(parts, dim=-1), whole)
