from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nxdi.config import OnDeviceSamplingConfig
from nxdi.modules.sampling import DynamicSampler, GreedySampler, make_sampler
from tiny_modules import drawn

INF = float("inf")


def sample(
    logits: list[float], uniform: float, top_k: float = 0, top_p: float = 1, temperature: float = 1
) -> int:
    params = torch.tensor([[top_k, top_p, temperature]])
    return int(DynamicSampler()(torch.tensor([logits]), params, torch.tensor([uniform])))


def test_greedy() -> None:
    got = GreedySampler()(torch.tensor([[0.0, 2, 1], [3, 2, 1]]), None, None)
    assert got.tolist() == [1, 0]
    assert got.dtype == torch.int32


def test_greedy_takes_the_first_on_a_tie() -> None:
    assert GreedySampler()(torch.tensor([[0.0, 2, 2]]), None, None).tolist() == [1]


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (OnDeviceSamplingConfig(), GreedySampler),
        (OnDeviceSamplingConfig(do_sample=True), DynamicSampler),
        (OnDeviceSamplingConfig(dynamic=True), DynamicSampler),
    ],
)
def test_make_sampler(config: OnDeviceSamplingConfig, kind: type) -> None:
    assert isinstance(make_sampler(config), kind)


LOGITS = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().tolist()


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 0), (0.05, 0), (0.15, 1), (0.29, 1), (0.31, 2), (0.59, 2), (0.61, 3), (0.9999999, 3)],
)
def test_a_draw_is_the_inverse_of_the_running_sum(uniform: float, token: int) -> None:
    assert sample(LOGITS, uniform) == token


@pytest.mark.parametrize(
    ("uniform", "top_k", "top_p", "token"),
    [
        (0.0, 2, 1, 2),  # the two likeliest, 3/7 and 4/7
        (0.42, 2, 1, 2),
        (0.44, 2, 1, 3),
        (0.0, 0, 0.65, 2),  # 0.4 + 0.3 reaches 0.65
        (0.0, 0, 0.75, 1),  # 0.4 + 0.3 + 0.2 is needed
        (0.0, 3, 0.5, 2),  # of 4/9, 3/9, 2/9 the first two
        (0.0, 0, 0.3, 3),  # never fewer than one
        (0.0, 4, 1, 0),
        (0.0, 99, 1, 0),  # more than there are
        (0.0, -1, 1, 0),
    ],
)
def test_top_k_and_top_p(uniform: float, top_k: int, top_p: float, token: int) -> None:
    assert sample(LOGITS, uniform, top_k, top_p) == token


@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.9999999])
@pytest.mark.parametrize(("top_k", "temperature"), [(1, 1.0), (1, 50.0), (0, 0.0), (3, 0.0)])
def test_greedy_requests_ignore_the_draw(uniform: float, top_k: int, temperature: float) -> None:
    assert sample([0.0, 3, 1, 3], uniform, top_k, 0.9, temperature) == 1


def test_temperature_divides_the_logits() -> None:
    squared = torch.tensor([0.1, 0.2, 0.3, 0.4]).square()
    edge = float(squared[0] / squared.sum())
    assert sample(LOGITS, edge - 0.001, temperature=0.5) == 0
    assert sample(LOGITS, edge + 0.001, temperature=0.5) == 1


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45])
@pytest.mark.parametrize("logits", [[1.0, 5, 4], [-5.0, -1, -4], [3e4, 3.1e4, 3e4]])
def test_a_tiny_temperature_is_greedy(temperature: float, logits: list[float]) -> None:
    assert {sample(logits, uniform, temperature=temperature) for uniform in (0.0, 0.99)} == {1}


def test_impossible_tokens_are_never_drawn() -> None:
    assert {sample([-INF, 1, -INF, 1, -INF], u / 64) for u in range(64)} == {1, 3}
    assert {sample([-INF, 1, -INF, 1, -INF], u / 64, top_k=4) for u in range(64)} == {1, 3}


def test_ties_at_a_threshold_are_all_kept() -> None:
    assert {sample([2.0, 1, 1, 0], u / 64, top_k=2) for u in range(64)} == {0, 1, 2}


def test_negative_logits_sort_below_positive_ones() -> None:
    assert {sample([-3.0, 0.1, -2, 0.2], u / 64, top_k=2) for u in range(64)} == {1, 3}
    assert {sample([-3.0, -1, -2, -4], u / 64, top_k=2) for u in range(64)} == {1, 2}


def test_rows_have_their_own_parameters() -> None:
    logits = drawn(1, 50).expand(4, 50)
    params = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 0], [5, 0.9, 2]])
    uniform = torch.tensor([0.1, 0.2, 0.3, 0.4])
    together = DynamicSampler()(logits, params, uniform)
    alone: list[Tensor] = [
        DynamicSampler()(logits[:1], params[i : i + 1], uniform[i : i + 1]) for i in range(4)
    ]
    assert together.tolist() == torch.cat(alone).tolist()
    assert together.dtype == torch.int32
