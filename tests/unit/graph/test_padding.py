from __future__ import annotations

import pytest
import torch

from nxdi.config import NeuronConfig, OnDeviceSamplingConfig
from nxdi.errors import ShapeError
from nxdi.graph.padding import StepBatch, graph_rows, num_graph_rows, pad_step, unpad_step
from nxdi.graph.plan import GraphSpec, plan_graphs
from nxdi.types import Phase

SAMPLING = OnDeviceSamplingConfig(dynamic=True)


def graph(phase: Phase, sampling: OnDeviceSamplingConfig | None = None) -> GraphSpec:
    config = NeuronConfig(
        seq_len=8, max_context_length=4, batch_size=3, on_device_sampling_config=sampling
    )
    return plan_graphs(config).of(phase)[0]


def prompts() -> StepBatch:
    """Rows of 2 and 3 tokens for cache rows 2 and 0."""
    return StepBatch(
        Phase.PREFILL,
        torch.tensor([[5, 6, 0], [7, 8, 9]]),
        torch.tensor([[0, 1, -1], [0, 1, 2]], dtype=torch.int32),
        torch.tensor([2, 0], dtype=torch.int32),
    )


def running() -> StepBatch:
    """One token each for cache rows 2 and 0."""
    return StepBatch(
        Phase.DECODE,
        torch.tensor([[5], [7]]),
        torch.tensor([[4], [6]], dtype=torch.int32),
        torch.tensor([2, 0], dtype=torch.int32),
    )


def test_prefill_keeps_the_order_of_rows() -> None:
    padded = pad_step(prompts(), graph(Phase.PREFILL))
    assert padded["input_ids"].tolist() == [[5, 6, 0, 0], [7, 8, 9, 0], [0, 0, 0, 0]]
    assert padded["position_ids"].tolist() == [[0, 1, -1, -1], [0, 1, 2, -1], [-1, -1, -1, -1]]
    assert padded["seq_ids"].tolist() == [2, 0, 0]


def test_decode_puts_each_row_at_its_cache_row() -> None:
    padded = pad_step(running(), graph(Phase.DECODE))
    assert padded["input_ids"].tolist() == [[7], [0], [5]]
    assert padded["position_ids"].tolist() == [[6], [-1], [4]]
    assert padded["seq_ids"].tolist() == [0, 1, 2]


def test_inputs_have_the_declared_dtypes() -> None:
    padded = pad_step(prompts(), graph(Phase.PREFILL))
    assert {tensor.dtype for tensor in padded.values()} == {torch.int32}


def test_the_caller_s_tensors_stay_as_they_are() -> None:
    batch = prompts()
    before = batch.input_ids.clone()
    pad_step(batch, graph(Phase.PREFILL))["input_ids"].fill_(1)
    assert torch.equal(batch.input_ids, before)


def test_extras_are_padded_as_declared() -> None:
    batch = running()
    batch.extras = {
        "sampling_params": torch.tensor([[5, 0.5, 0.7], [6, 0.6, 0.8]]),
        "uniform": torch.tensor([0.1, 0.2]),
    }
    padded = pad_step(batch, graph(Phase.DECODE, SAMPLING))
    rows = torch.tensor([[6, 0.6, 0.8], [1, 1, 1], [5, 0.5, 0.7]])
    torch.testing.assert_close(padded["sampling_params"], rows)
    torch.testing.assert_close(padded["uniform"], torch.tensor([0.2, 0.5, 0.1]))


def test_missing_input() -> None:
    with pytest.raises(ShapeError, match=r"token_generation_model_b3_s8 needs the input 'sampling"):
        pad_step(running(), graph(Phase.DECODE, SAMPLING))


def test_a_narrower_graph_drops_only_padding() -> None:
    batch = prompts()
    batch.input_ids = torch.nn.functional.pad(batch.input_ids, (0, 6))
    batch.position_ids = torch.nn.functional.pad(batch.position_ids, (0, 6), value=-1)
    padded = pad_step(batch, graph(Phase.PREFILL))
    assert padded["input_ids"].tolist() == [[5, 6, 0, 0], [7, 8, 9, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("batch", [prompts(), running()])
def test_unpad_returns_the_caller_s_rows_in_order(batch: StepBatch) -> None:
    padded = pad_step(batch, graph(batch.phase))
    first = {"tokens": padded["input_ids"][:, 0]}
    assert unpad_step(first, batch)["tokens"].tolist() == [5, 7]


def test_length_counts_new_tokens_in_prefill_and_slots_in_decode() -> None:
    assert prompts().length == 3
    assert running().length == 7


def test_graph_rows() -> None:
    assert graph_rows(prompts()).tolist() == [0, 1]
    assert graph_rows(running()).tolist() == [2, 0]
    assert num_graph_rows(prompts()) == 2
    assert num_graph_rows(running()) == 3


def test_rows_cuts_every_tensor() -> None:
    batch = prompts()
    batch.extras = {"uniform": torch.tensor([0.1, 0.2])}
    part = batch.rows(slice(1, 2))
    assert part.num_rows == 1
    assert part.input_ids.tolist() == [[7, 8, 9]]
    assert part.position_ids.tolist() == [[0, 1, 2]]
    assert part.seq_ids.tolist() == [0]
    assert part.extras["uniform"].shape == (1,)
