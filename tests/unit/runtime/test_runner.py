from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.errors import BucketError
from nxdi.graph.padding import StepBatch
from nxdi.graph.plan import GraphSpec, plan_graphs
from nxdi.parallel_layers.groups import SINGLE, SimulatedWorld, current
from nxdi.runtime.runner import Runner
from nxdi.types import Phase


class Rank:
    """Answers each row with its first token times ten, plus its rank; keeps what it was asked."""

    def __init__(self) -> None:
        self.caches = [torch.ones(2), torch.ones(3)]
        self.asked: list[tuple[str, dict[str, Tensor]]] = []

    def __call__(self, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.asked.append((spec.name, dict(inputs)))
        return {"tokens": inputs["input_ids"][:, 0] * 10 + current()[1]}

    def reset(self) -> None:
        for cache in self.caches:
            cache.zero_()


def make_runner(**options: object) -> tuple[Runner, Rank]:
    config = NeuronConfig(
        **{
            "seq_len": 32,
            "max_context_length": 16,
            "batch_size": 4,
            "enable_bucketing": True,
            "context_encoding_buckets": [8, 16],
            "token_generation_buckets": [16, 32],
            **options,
        }
    )
    rank = Rank()
    return Runner(plan_graphs(config), SINGLE, [rank]), rank


def prompts(rows: int, length: int) -> StepBatch:
    ids = torch.arange(1, rows + 1).unsqueeze(1).expand(rows, length)
    positions = torch.arange(length, dtype=torch.int32).expand(rows, length)
    return StepBatch(Phase.PREFILL, ids, positions, torch.arange(rows, dtype=torch.int32))


def running(seq_ids: list[int], position: int) -> StepBatch:
    ids = torch.tensor(seq_ids).unsqueeze(1) + 1
    positions = torch.full_like(ids, position, dtype=torch.int32)
    return StepBatch(Phase.DECODE, ids, positions, torch.tensor(seq_ids, dtype=torch.int32))


@pytest.mark.parametrize(
    ("batch", "name"),
    [
        (prompts(1, 8), "context_encoding_model_b4_s8"),
        (prompts(4, 9), "context_encoding_model_b4_s16"),
        (running([0], 15), "token_generation_model_b4_s16"),
        (running([3, 1], 16), "token_generation_model_b4_s32"),
    ],
)
def test_a_step_runs_the_smallest_graph_that_fits(batch: StepBatch, name: str) -> None:
    runner, rank = make_runner()
    outputs = runner.step(batch)
    assert [asked for asked, _ in rank.asked] == [name]
    assert outputs["tokens"].tolist() == (batch.input_ids[:, 0] * 10).tolist()


def test_more_prompts_than_a_prefill_graph_takes_are_run_in_turns() -> None:
    runner, rank = make_runner(ctx_batch_size=2, batch_size=5)
    outputs = runner.step(prompts(5, 3))
    assert outputs["tokens"].tolist() == [10, 20, 30, 40, 50]
    assert [inputs["seq_ids"].tolist() for _, inputs in rank.asked] == [[0, 1], [2, 3], [4, 0]]


def test_a_prompt_too_long_is_refused_before_any_turn_runs() -> None:
    runner, rank = make_runner(ctx_batch_size=1)
    batch = prompts(3, 17)
    batch.position_ids = batch.position_ids.clone()
    batch.position_ids[:2, 4:] = -1  # only the last one is too long
    with pytest.raises(BucketError, match=r"of 17 is longer .*\(16\); raise max_context_length"):
        runner.step(batch)
    assert rank.asked == []


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (running([0], 32), r"sequence \(tokens\) of 33 .*\(32\); raise seq_len"),
        (running([4], 3), r"decode batch of 5 .*\(4\); raise batch_size"),
    ],
)
def test_a_decode_that_does_not_fit(batch: StepBatch, message: str) -> None:
    runner, rank = make_runner()
    with pytest.raises(BucketError, match=message):
        runner.step(batch)
    assert rank.asked == []


def test_every_rank_runs_and_rank_0_answers() -> None:
    plan, ranks = plan_graphs(NeuronConfig(seq_len=8)), [Rank(), Rank(), Rank()]
    outputs = Runner(plan, SimulatedWorld(3), ranks).step(prompts(1, 2))
    assert outputs["tokens"].tolist() == [10]
    assert [len(rank.asked) for rank in ranks] == [1, 1, 1]


def test_warm_up_runs_the_shortest_graph_of_each_phase_on_padding() -> None:
    runner, rank = make_runner(token_generation_batches=[1])
    runner.warm_up()
    assert [name for name, _ in rank.asked] == [
        "context_encoding_model_b4_s8",
        "token_generation_model_b1_s16",
    ]
    for _, inputs in rank.asked:
        assert set(inputs["position_ids"].unique().tolist()) == {-1}


def test_reset_clears_every_cache() -> None:
    runner, rank = make_runner()
    runner.reset()
    assert all(not bool(cache.any()) for cache in rank.caches)
