"""The counted work of a step against arithmetic by hand, and against the model's own tensors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from collective_counts import collectives_of_step
from nxdi.models.model_base import NeuronBaseModel
from nxdi.modules.moe.exchange import exchanged_bytes
from nxdi.modules.moe.spec import MoESpec
from nxdi.tools.estimate.count import GraphCounter
from nxdi.tools.estimate.work import Collective, Product, Work
from nxdi.types import Phase
from tiny_models import FAMILIES, VOCAB_SIZE

# Of the tiny Llama: bfloat16, two layers, two rows.
HIDDEN, INNER, HEADS, KV_HEADS, DIM, LAYERS, ROWS = 64, 112, 4, 2, 16, 2, 2
LAYER_WEIGHTS = HIDDEN * DIM * (2 * HEADS + 2 * KV_HEADS) + 3 * HIDDEN * INNER
NORMS = (2 * LAYERS + 1) * HIDDEN
ANGLES = LAYERS * DIM // 2 * 4  # bytes of the frequencies of rotary embeddings


def count(app: Any, phase: Phase) -> Work:
    return GraphCounter(app).count(app.plan.of(phase)[-1])


def test_a_decode_step_on_one_rank(make: Any) -> None:
    work = count(make(), Phase.DECODE)
    head = HIDDEN * VOCAB_SIZE
    assert work.weight_flops == 2 * ROWS * (LAYERS * LAYER_WEIGHTS + head)
    assert work.attention_flops == 2 * LAYERS * 2 * ROWS * HEADS * DIM * 64
    read = LAYERS * LAYER_WEIGHTS + head + NORMS + ROWS * HIDDEN
    assert work.weight_bytes == 2 * read + ANGLES
    assert work.cache_bytes == 2 * LAYERS * 2 * ROWS * KV_HEADS * DIM * 64
    assert work.written_bytes == 2 * LAYERS * 2 * ROWS * KV_HEADS * DIM
    assert work.num_products == LAYERS * 9 + 1
    assert not work.collectives
    gate_and_up = Product(ROWS, HIDDEN, INNER, torch.bfloat16)
    assert work.products[gate_and_up] == 2 * LAYERS
    assert sum(work.products.values()) == LAYERS * 7 + 1


def test_a_prefill_reads_no_cache_and_one_row_of_logits(make: Any) -> None:
    work = count(make(), Phase.PREFILL)
    head = HIDDEN * VOCAB_SIZE
    assert work.weight_flops == 2 * ROWS * (32 * LAYERS * LAYER_WEIGHTS + head)
    assert work.cache_bytes == 0
    assert work.written_bytes == 2 * LAYERS * 2 * ROWS * KV_HEADS * DIM * 32
    assert work.workspace_bytes == 2 * ROWS * 32 * (HIDDEN + INNER)


def test_ranks_share_the_work_and_send_sums(make: Any) -> None:
    alone, shared = count(make(), Phase.DECODE), count(make(tp_degree=2), Phase.DECODE)
    assert shared.cache_bytes == alone.cache_bytes // 2
    assert shared.num_products == alone.num_products
    hidden = 2 * ROWS * HIDDEN
    assert shared.collectives == Counter(
        {
            Collective("all_reduce", hidden, 2): 2 * LAYERS,
            Collective("all_gather", hidden, 2): 1,  # of embeddings
            Collective("all_gather", 2 * ROWS * (VOCAB_SIZE + 1), 2): 1,  # padded
        }
    )
    sums, gathers = 2 * LAYERS * hidden, (hidden + 2 * ROWS * (VOCAB_SIZE + 1)) / 2
    assert shared.collective_bytes == sums + gathers


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family(family: str, make: Any) -> None:
    app = make(family, tp_degree=2)
    counter = GraphCounter(app)
    for spec in app.plan.graphs:
        work = counter.count(spec)
        model = counter.model(spec.phase)
        held = sum(tensor.nbytes for tensor in model.state_dict().values())
        looked_up = 2 * 2 * spec.batch_size * spec.num_tokens * model.hidden_size
        assert 0.3 * held < work.weight_bytes <= held + looked_up
        assert work.flops > 0
        ops: Counter[str] = Counter()
        for collective, times in work.collectives.items():
            ops[collective.op] += times
        assert ops == collectives_of_step(family, len(model.layers))


@pytest.mark.parametrize("family", ["cohere2", "llama", "qwen3_moe"])
def test_layers_alike_count_as_if_each_had_run(
    family: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make(family, tp_degree=2, hf_num_hidden_layers=4, hf_layer_types=None)
    composed = count(app, Phase.DECODE)
    monkeypatch.setattr(NeuronBaseModel, "composes", False)
    monkeypatch.setattr(NeuronBaseModel, "step", super(NeuronBaseModel, NeuronBaseModel).step)
    whole = count(app, Phase.DECODE)
    assert whole == composed


def test_a_window_reads_no_more_than_it_keeps(make: Any) -> None:
    whole, window = count(make(), Phase.DECODE), count(make("mistral"), Phase.DECODE)
    assert window.cache_bytes * 64 == whole.cache_bytes * 24


def test_quantized_weights_and_caches_are_read_as_they_are_stored(make: Any) -> None:
    plain = count(make(), Phase.DECODE)
    stored = {"quantized": True, "quantization_type": "per_channel_symmetric"}
    small = count(make(**stored, kv_cache_quant=True), Phase.DECODE)
    scales = 4 * (LAYERS * (DIM * (HEADS + 2 * KV_HEADS) + 2 * HIDDEN + 2 * INNER) + VOCAB_SIZE)
    weights = LAYERS * LAYER_WEIGHTS + HIDDEN * VOCAB_SIZE
    assert small.weight_bytes == plain.weight_bytes - weights + scales
    assert small.cache_bytes == plain.cache_bytes // 2
    assert (small.weight_flops, small.products) == (plain.weight_flops, plain.products)


def test_a_paged_cache_is_read_block_by_block(make: Any) -> None:
    flat = count(make(), Phase.DECODE)
    paged = count(make(is_block_kv_layout=True, pa_block_size=16), Phase.DECODE)
    assert (paged.cache_bytes, paged.written_bytes) == (flat.cache_bytes, flat.written_bytes)


def test_only_the_chosen_experts_are_read(make: Any) -> None:
    app = make("qwen3_moe", batch_size=1)
    decode, prefill = count(app, Phase.DECODE), count(app, Phase.PREFILL)
    expert = 3 * HIDDEN * 40 * 2
    read = prefill.weight_bytes - decode.weight_bytes
    assert read == (8 - 3) * expert + 2 * (32 - 1) * HIDDEN  # and rows of embeddings


def test_a_verify_step_computes_more_and_reads_the_same(make: Any) -> None:
    app = make(speculation_length=4)
    verify, decode = count(app, Phase.VERIFY), count(app, Phase.DECODE)
    assert verify.cache_bytes == decode.cache_bytes
    assert verify.weight_flops == 4 * decode.weight_flops
    assert verify.weight_bytes == decode.weight_bytes + 3 * 2 * ROWS * HIDDEN


def test_attention_is_described(make: Any) -> None:
    (call,) = count(make(tp_degree=2), Phase.DECODE).attend_calls
    assert (call.num_kv_heads, call.group_size, call.num_queries, call.num_keys) == (1, 2, 1, 64)


def test_what_a_ring_sends() -> None:
    assert Collective("all_reduce", 800, 4).sent_bytes == 2 * 600
    assert Collective("all_gather", 800, 4).sent_bytes == 600


def test_tokens_that_are_sent_around_are_counted_as_their_module_says(make: Any) -> None:
    app = make(
        "mixtral",
        tp_degree=2,
        sequence_parallel_enabled=True,
        ep_dispatch_cc_option="A2A",
        moe_ep_degree=2,
        moe_tp_degree=1,
    )
    work = count(app, Phase.PREFILL)
    sent = sum(
        collective.sent_bytes * times
        for collective, times in work.collectives.items()
        if collective.op == "all_to_all"
    )
    spec = MoESpec(num_experts=4, top_k=2, hidden_size=HIDDEN, intermediate_size=INNER)
    neuron = app.neuron_config.for_phase(Phase.PREFILL, "neuron")
    experts = LAYERS * exchanged_bytes(spec, neuron, num_tokens=ROWS * 32 // 2)
    embedding = ROWS * 32 * HIDDEN // 2  # half of a rank's half of the features, two bytes each
    assert sent == experts + embedding
