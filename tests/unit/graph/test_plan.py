from __future__ import annotations

import json
from typing import Any

import pytest

from nxdi.config import NeuronConfig, OnDeviceSamplingConfig
from nxdi.errors import BucketError, ConfigError
from nxdi.graph.plan import GraphSpec, check_capacity, plan_graphs
from nxdi.types import Phase


def lengths(phase: Phase, **options: Any) -> list[int]:
    return [graph.length for graph in plan_graphs(NeuronConfig(**options)).of(phase)]


def test_without_bucketing_one_graph_per_phase() -> None:
    plan = plan_graphs(NeuronConfig(seq_len=640, max_context_length=500, batch_size=3))
    assert [graph.name for graph in plan.graphs] == [
        "context_encoding_model_b3_s500",
        "token_generation_model_b3_s640",
    ]


def test_bucketing_makes_both_ladders() -> None:
    options = {"seq_len": 640, "max_context_length": 200, "enable_bucketing": True}
    assert lengths(Phase.PREFILL, **options) == [128, 200]
    assert lengths(Phase.DECODE, **options) == [128, 256, 640]


def test_explicit_buckets_are_taken_as_they_are() -> None:
    options = {
        "seq_len": 64,
        "enable_bucketing": True,
        "context_encoding_buckets": [5, 31],
        "token_generation_buckets": [64],
    }
    assert lengths(Phase.PREFILL, **options) == [5, 31]
    assert lengths(Phase.DECODE, **options) == [64]


def test_decode_has_a_graph_for_each_batch_bucket_and_the_full_batch() -> None:
    config = NeuronConfig(seq_len=32, batch_size=8, token_generation_batches=[1, 2])
    plan = plan_graphs(config)
    assert [graph.batch_size for graph in plan.of(Phase.DECODE)] == [1, 2, 8]
    assert [graph.batch_size for graph in plan.of(Phase.PREFILL)] == [8]


def test_prefill_batch_may_be_smaller() -> None:
    plan = plan_graphs(NeuronConfig(seq_len=32, batch_size=8, ctx_batch_size=2))
    assert plan.max_batch(Phase.PREFILL) == 2
    assert plan.max_batch(Phase.DECODE) == 8


def test_shapes_follow_from_phase_and_length() -> None:
    prefill, decode = plan_graphs(
        NeuronConfig(seq_len=32, max_context_length=16, batch_size=2)
    ).graphs
    assert (prefill.num_tokens, decode.num_tokens) == (16, 1)
    assert prefill.input_shapes() == {
        "input_ids": (2, 16),
        "position_ids": (2, 16),
        "seq_ids": (2,),
    }
    assert decode.input_shapes() == {"input_ids": (2, 1), "position_ids": (2, 1), "seq_ids": (2,)}


@pytest.mark.parametrize(
    ("sampling", "output_logits", "inputs", "outputs"),
    [
        (None, False, 3, ("logits",)),
        (OnDeviceSamplingConfig(), False, 3, ("tokens",)),
        (OnDeviceSamplingConfig(), True, 3, ("tokens", "logits")),
        (OnDeviceSamplingConfig(do_sample=True), False, 5, ("tokens",)),
        (OnDeviceSamplingConfig(dynamic=True), False, 5, ("tokens",)),
    ],
)
def test_sampling_decides_inputs_and_outputs(
    sampling: OnDeviceSamplingConfig | None,
    output_logits: bool,
    inputs: int,
    outputs: tuple[str, ...],
) -> None:
    config = NeuronConfig(on_device_sampling_config=sampling, output_logits=output_logits)
    for graph in plan_graphs(config).graphs:
        assert len(graph.inputs) == inputs
        assert graph.outputs == outputs


@pytest.mark.parametrize(
    ("num_rows", "length", "batch", "rung"),
    [(1, 1, 1, 16), (1, 16, 1, 16), (1, 17, 1, 64), (2, 16, 4, 16), (4, 64, 4, 64)],
)
def test_choose(num_rows: int, length: int, batch: int, rung: int) -> None:
    config = NeuronConfig(
        seq_len=64,
        batch_size=4,
        enable_bucketing=True,
        token_generation_buckets=[16, 64],
        token_generation_batches=[1],
    )
    chosen = plan_graphs(config).choose(Phase.DECODE, num_rows, length)
    assert (chosen.phase, chosen.batch_size, chosen.length) == (Phase.DECODE, batch, rung)


@pytest.mark.parametrize(
    ("phase", "num_rows", "length", "message"),
    [
        (Phase.PREFILL, 1, 17, r"prompt \(tokens\) of 17 .*\(16\); raise max_context_length"),
        (Phase.DECODE, 1, 33, r"sequence \(tokens\) of 33 .*\(32\); raise seq_len and compile"),
        (Phase.DECODE, 3, 1, r"decode batch of 3 .*\(2\); raise batch_size and compile again"),
    ],
)
def test_choose_beyond_the_largest(phase: Phase, num_rows: int, length: int, message: str) -> None:
    plan = plan_graphs(NeuronConfig(seq_len=32, max_context_length=16, batch_size=2))
    with pytest.raises(BucketError, match=message):
        plan.choose(phase, num_rows, length)


def test_max_length_of_each_phase() -> None:
    plan = plan_graphs(NeuronConfig(seq_len=640, max_context_length=200, enable_bucketing=True))
    assert (plan.max_length(Phase.PREFILL), plan.max_length(Phase.DECODE)) == (200, 640)


def test_sequence_parallel_needs_buckets_that_divide() -> None:
    config = NeuronConfig(
        seq_len=64,
        tp_degree=4,
        sequence_parallel_enabled=True,
        enable_bucketing=True,
        context_encoding_buckets=[16, 18, 64],
    )
    with pytest.raises(ConfigError, match=r"tp_degree=4, but got \[18\]; choose other") as caught:
        plan_graphs(config)
    assert "context_encoding_buckets" in str(caught.value)


def test_sequence_parallel_with_even_buckets() -> None:
    config = NeuronConfig(seq_len=64, tp_degree=4, sequence_parallel_enabled=True)
    assert plan_graphs(config).max_length(Phase.PREFILL) == 64


PAGED = {"is_block_kv_layout": True, "pa_block_size": 16}


def test_prompts_in_pieces_have_a_graph_for_every_pair_of_piece_and_context() -> None:
    config = NeuronConfig(
        seq_len=512,
        max_context_length=256,
        batch_size=2,
        enable_bucketing=True,
        context_encoding_buckets=[64, 128],
        token_generation_buckets=[128, 256, 512],
        windowed_context_encoding_size=100,
    )
    plan = plan_graphs(config)
    assert [graph.length for graph in plan.of(Phase.PREFILL)] == [64, 100]
    extend = [(graph.length, graph.context) for graph in plan.of(Phase.EXTEND)]
    assert extend == [(64, 128), (64, 256), (64, 512), (100, 128), (100, 256), (100, 512)]
    assert plan.phases == (Phase.PREFILL, Phase.DECODE, Phase.EXTEND)
    chosen = plan.choose(Phase.EXTEND, 1, 65, 200)
    assert chosen.name == "context_encoding_model_b2_s100_c256"
    assert (chosen.num_tokens, chosen.num_slots) == (100, 256)
    with pytest.raises(BucketError, match=r"context \(tokens\) of 513"):
        plan.choose(Phase.EXTEND, 1, 65, 513)


PREFIXES = {
    "seq_len": 4096,
    "max_context_length": 2048,
    "enable_bucketing": True,
    "context_encoding_buckets": [512, 1024, 2048],
    "is_prefix_caching": True,
    "is_block_kv_layout": True,
    "pa_block_size": 32,
}


def test_prefix_buckets_have_a_graph_for_every_pair_of_prompt_and_prefix() -> None:
    plan = plan_graphs(NeuronConfig(**PREFIXES, prefix_buckets=[512, 3072]))
    extend = [(graph.length, graph.context) for graph in plan.of(Phase.EXTEND)]
    # No row has more than seq_len tokens, so (2048, 3072) sees no more than 4096.
    assert extend == [
        *((512, 512), (512, 1024), (512, 3584)),
        *((1024, 1024), (1024, 1536), (1024, 4096)),
        *((2048, 2048), (2048, 2560), (2048, 4096)),
    ]
    assert plan == plan_graphs(NeuronConfig(**PREFIXES, prefix_buckets=[0, 512, 3072]))


@pytest.mark.parametrize(
    ("num_new", "num_prefix", "pair"),
    [
        # All tokens fill one prompt bucket: the cost of a plain prefill.
        (1, 511, (512, 0)),
        (57, 200, (512, 0)),
        (256, 256, (512, 0)),
        (600, 424, (1024, 0)),
        # What the new tokens leave of their bucket counts for the prefix.
        (300, 600, (512, 512)),
        (513, 600, (1024, 512)),
        (513, 1024, (1024, 1024)),
        (500, 500, (512, 512)),
        (100, 1436, (512, 1024)),
        # They fill it.
        (1, 512, (512, 512)),
        (512, 512, (512, 512)),
        (512, 513, (512, 1024)),
        (2048, 2048, (2048, 2048)),
        # Only a larger prompt bucket has room for so long a prefix.
        (1, 2560, (1024, 2048)),
        (512, 2561, (2048, 2048)),
    ],
)
def test_the_pair_of_a_prompt_and_its_prefix(
    num_new: int, num_prefix: int, pair: tuple[int, int]
) -> None:
    """As NxDI documents it; where it has no pair, in the last rows, the next prompt bucket."""
    plan = plan_graphs(NeuronConfig(**PREFIXES, prefix_buckets=[512, 1024, 2048]))
    chosen = plan.choose(Phase.EXTEND, 1, num_new, num_prefix + num_new)
    assert (chosen.length, chosen.context - chosen.length) == pair


def test_a_prefix_beyond_the_largest_pair() -> None:
    plan = plan_graphs(NeuronConfig(**PREFIXES, prefix_buckets=[512]))
    assert plan.choose(Phase.EXTEND, 1, 1, 2560).context == 2560
    with pytest.raises(BucketError, match=r"of 2561 .*\(2560\); raise seq_len, and prefix_buckets"):
        plan.choose(Phase.EXTEND, 1, 1, 2561)


def test_a_paged_cache_has_blocks_where_another_has_rows() -> None:
    config = NeuronConfig(seq_len=40, max_context_length=20, batch_size=3, **PAGED)
    assert config.pa_num_blocks == 3 * 3
    prefill, decode = plan_graphs(config).graphs
    assert [item.name for item in prefill.inputs] == ["input_ids", "position_ids", "block_table"]
    assert prefill.input_shapes()["block_table"] == (3, 2)
    assert decode.input_shapes()["block_table"] == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_prefix_caching": True}, "set is_block_kv_layout=True"),
        ({**PAGED, "pa_block_size": 0}, "pa_block_size=0 is not between 1 and max_length=64"),
        ({**PAGED, "pa_block_size": 65}, "pa_block_size=65 is not between"),
        ({**PAGED, "pa_num_blocks": 3}, "do not hold one sequence of max_length=64; use 4 or more"),
        ({"windowed_context_encoding_size": 65}, "is not between 1 and max_context_length=64"),
        (
            {"windowed_context_encoding_size": 8, "chunked_prefill_config": {}},
            "both cut prompts; give one",
        ),
        ({"chunked_prefill_config": {"no_such": 1}}, "has no option 'no_such'"),
    ],
)
def test_caches_and_pieces_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NeuronConfig(seq_len=64, **options)


@pytest.mark.parametrize(("prompt_len", "new"), [(1, 32), (16, 17), (32, 1)])
def test_capacity_counts_that_the_last_token_needs_no_slot(prompt_len: int, new: int) -> None:
    check_capacity(NeuronConfig(seq_len=32), prompt_len, new)


def test_capacity_exceeded() -> None:
    with pytest.raises(BucketError, match=r"16 tokens plus 18 new .*seq_len=32; .*at most 17 new"):
        check_capacity(NeuronConfig(seq_len=32), 16, 18)


def test_capacity_is_that_of_the_longest_decode_graph() -> None:
    config = NeuronConfig(
        seq_len=32, enable_bucketing=True, token_generation_buckets=[16], max_context_length=8
    )
    check_capacity(config, 8, 9)
    message = r"8 tokens plus 10 new .* max\(token_generation_buckets\)=16; ask for at most 9 new"
    with pytest.raises(BucketError, match=message):
        check_capacity(config, 8, 10)


def test_graphs_are_plain_data() -> None:
    graph: GraphSpec = plan_graphs(NeuronConfig(seq_len=16)).graphs[0]
    data = json.loads(json.dumps(graph.to_dict()))
    assert data["phase"] == "prefill"
    assert data["name"] == "context_encoding_model_b1_s16"
    assert data["inputs"][1] == {
        "name": "position_ids",
        "dims": ["batch", "tokens"],
        "dtype": "int32",
        "fill": -1,
    }


def test_verify_graphs_take_some_tokens_and_see_what_decode_sees() -> None:
    config = NeuronConfig(
        seq_len=64,
        batch_size=4,
        speculation_length=5,
        enable_bucketing=True,
        token_generation_buckets=[5, 64],
        token_generation_batches=[2],
        on_device_sampling_config={"dynamic": True},
    )
    plan = plan_graphs(config)
    assert [graph.name for graph in plan.of(Phase.VERIFY)] == [
        "speculation_model_b2_s5_c5",
        "speculation_model_b2_s5_c64",
        "speculation_model_b4_s5_c5",
        "speculation_model_b4_s5_c64",
    ]
    graph = plan.choose(Phase.VERIFY, 3, 2, 6)
    assert (graph.batch_size, graph.num_tokens, graph.num_slots) == (4, 5, 64)
    shapes = graph.input_shapes()
    assert (shapes["input_ids"], shapes["uniform"]) == ((4, 5), (4, 5))
    assert shapes["sampling_params"] == (4, 3)
    with pytest.raises(BucketError, match=r"step \(tokens\) of 6 .* raise speculation_length"):
        plan.choose(Phase.VERIFY, 1, 6, 64)
    assert not plan_graphs(NeuronConfig(seq_len=64)).of(Phase.VERIFY)
