"""Law 11: what may be drawn, how often, and that greedy requests are greedy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from nxdi.graph.sampling_inputs import uniform_for
from nxdi.modules.sampling import DynamicSampler

VOCAB = 23
# Below this probability a token may miss every float32 number between 0 and 1.
_LEAST = 1e-5


@st.composite
def distinct_logits(draw: st.DrawFn) -> Tensor:
    order = torch.tensor(draw(st.permutations(range(VOCAB))), dtype=torch.float32)
    spread = draw(st.sampled_from([0.01, 0.2, 1.0, 5.0]))
    return (order - VOCAB / 2) * spread + 0.003 * order**2


logits = distinct_logits()
top_ks = st.sampled_from([-1, 0, 1, 2, 3, 10, VOCAB - 1, VOCAB, VOCAB + 9])
top_ps = st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.1, 1e-6])
uniforms = st.integers(0, 2**24 - 1).map(lambda n: n / 2**24)
temperatures = st.sampled_from([0.05, 0.5, 1.0, 1.7, 20.0])


def draws(row: Tensor, params: tuple[float, float, float], numbers: Tensor) -> Tensor:
    """One draw per number: the same row with the same parameters."""
    num = numbers.shape[0]
    repeated = torch.tensor([params]).expand(num, 3)
    return DynamicSampler()(row.expand(num, -1), repeated, numbers)


def allowed_probabilities(row: Tensor, top_k: int, top_p: float, temperature: float) -> Tensor:
    """What remains by sorting, in float64; zero for what may not be drawn."""
    scaled = row.double() / temperature
    order = scaled.argsort(descending=True)
    kept = order[: top_k if top_k > 0 else VOCAB]
    probabilities = torch.softmax(scaled[kept], dim=0)
    before = probabilities.cumsum(0) - probabilities
    nucleus = kept if top_p == 1 else kept[before < top_p]
    result = torch.zeros(VOCAB, dtype=torch.float64)
    result[nucleus] = torch.softmax(scaled[nucleus], dim=0)
    return result


def is_near_the_edge(row: Tensor, top_k: int, top_p: float, temperature: float) -> bool:
    """Whether rounding decides on which side of top_p a running sum lies."""
    full = allowed_probabilities(row, top_k, 1.0, temperature)
    sums = full.sort(descending=True).values.cumsum(0)
    return top_p < 1 and bool(((sums - top_p).abs() < 1e-5).any())


@given(logits, top_ks, top_ps, temperatures)
@example(torch.zeros(VOCAB).index_fill(0, torch.tensor(4), 50.0), 0, 1.0, 1.0)
def test_support_and_order_of_draws(
    row: Tensor, top_k: int, top_p: float, temperature: float
) -> None:
    assume(top_k != 1 and not is_near_the_edge(row, top_k, top_p, temperature))
    expected = allowed_probabilities(row, top_k, top_p, temperature)
    grid = torch.cat([torch.linspace(0, 1 - 2**-24, 101), uniform_for([3] * 50, torch.arange(50))])
    drawn = draws(row, (top_k, top_p, temperature), grid).long()
    assert bool((expected[drawn] > 0).all())
    # Each token with a share worth speaking of is drawn in the middle of its share.
    tokens = (expected > _LEAST).nonzero().flatten()
    middles = (expected.cumsum(0) - expected / 2)[tokens].float()
    assert torch.equal(draws(row, (top_k, top_p, temperature), middles).long(), tokens)


@given(logits, top_ks, top_ps, temperatures)
def test_transformers_warpers_define_the_same_support(
    row: Tensor, top_k: int, top_p: float, temperature: float
) -> None:
    assume(not is_near_the_edge(row, top_k, top_p, temperature))
    scores = TemperatureLogitsWarper(temperature)(None, row[None].clone())
    if top_k > 0:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    expected = allowed_probabilities(row, top_k, top_p, temperature)
    assert torch.equal(scores[0].isfinite(), expected > 0)


@given(logits, top_ps, uniforms, st.floats(0.01, 100))
def test_top_k_1_is_argmax(row: Tensor, top_p: float, uniform: float, temperature: float) -> None:
    got = draws(row, (1, top_p, temperature), torch.tensor([uniform]))
    assert got.item() == row.argmax().item()


@given(logits, top_ks, top_ps, uniforms)
def test_temperature_0_is_argmax(row: Tensor, top_k: int, top_p: float, uniform: float) -> None:
    got = draws(row, (top_k, top_p, 0.0), torch.tensor([uniform]))
    assert got.item() == row.argmax().item()


@given(logits, st.sampled_from([0, -1]), uniforms)
def test_no_top_k_is_top_k_of_everything(row: Tensor, top_k: int, uniform: float) -> None:
    number = torch.tensor([uniform])
    assert torch.equal(draws(row, (top_k, 1.0, 1.0), number), draws(row, (VOCAB, 1.0, 1.0), number))


@given(
    st.lists(st.integers(-2, 2), min_size=VOCAB, max_size=VOCAB).filter(lambda x: len(set(x)) > 1),
    st.integers(2, VOCAB),
    st.sampled_from([1.0, 0.5]),
)
def test_all_tokens_tied_at_a_threshold_stay(levels: list[int], top_k: int, top_p: float) -> None:
    row = torch.tensor(levels, dtype=torch.float32)
    level = row.sort(descending=True).values[top_k - 1]
    kept = torch.softmax(torch.where(row >= level, row, -torch.inf).double(), dim=0)
    groups = row.unique().flip(0)
    before = torch.stack([kept[row > value].sum() for value in groups])
    assume(not bool(((before - top_p).abs() < 1e-5).any()) or top_p == 1)
    lowest = groups[before < top_p].min()
    expected = (row >= torch.maximum(lowest, level)).nonzero().flatten().tolist()
    drawn = draws(row, (top_k, top_p, 1.0), torch.linspace(0, 1 - 2**-24, 2001))
    assert sorted(set(drawn.tolist())) == expected


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(0, 1.0, 1.0), (5, 1.0, 1.0), (0, 0.8, 1.0), (6, 0.9, 2.0)]
)
def test_frequencies(top_k: int, top_p: float, temperature: float) -> None:
    row = torch.tensor([0.3, -1.2, 2.0, 0.0, 1.1, -0.4, 1.6, 0.7]).repeat(3)[:VOCAB]
    row = row + 0.01 * torch.arange(VOCAB)
    expected = allowed_probabilities(row, top_k, top_p, temperature)
    num = 20_000
    numbers = torch.rand(num, generator=torch.Generator().manual_seed(0))
    counts = draws(row, (top_k, top_p, temperature), numbers).long().bincount(minlength=VOCAB)
    seen = expected > 0
    assert int(counts[~seen].sum()) == 0
    chi_square = ((counts - num * expected)[seen] ** 2 / (num * expected[seen])).sum()
    # Mean and standard deviation of chi-square are f and sqrt(2 f): five of them, for a fixed seed.
    freedom = int(seen.sum()) - 1
    assert float(chi_square) < freedom + 5 * (2 * freedom) ** 0.5
