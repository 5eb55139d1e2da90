from __future__ import annotations

import pytest

from nxdi.config import NeuronConfig
from nxdi.errors import BucketError, ConfigError
from nxdi.graph.plan import plan_graphs
from nxdi.tools.model_info.records import GraphUse, RequestInfo
from nxdi.tools.model_info.request import plan_request
from nxdi.types import Phase

CONFIG = NeuronConfig(
    seq_len=64,
    max_context_length=32,
    batch_size=4,
    ctx_batch_size=2,
    token_generation_batches=[1, 4],
    enable_bucketing=True,
    context_encoding_buckets=[8, 32],
    token_generation_buckets=[16, 64],
)
PLAN = plan_graphs(CONFIG)


def plan(*request: int) -> RequestInfo:
    return plan_request(PLAN, CONFIG, *request)


def test_decode_moves_to_a_longer_graph() -> None:
    assert plan(10, 12).steps == (
        GraphUse("context_encoding_model_b2_s32", 1, 1, 1),
        GraphUse("token_generation_model_b1_s16", 6, 2, 7),
        GraphUse("token_generation_model_b1_s64", 5, 8, 12),
    )


@pytest.mark.parametrize("prompt_len", [1, 7, 8, 9, 15, 16, 17, 32])
@pytest.mark.parametrize("new_tokens", [1, 2, 9, 33])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4])
def test_every_token_comes_from_the_graph_that_a_step_chooses(
    prompt_len: int, new_tokens: int, num_rows: int
) -> None:
    prefill, *decode = plan(prompt_len, new_tokens, num_rows).steps
    assert prefill.graph == PLAN.choose(Phase.PREFILL, min(num_rows, 2), prompt_len).name
    assert prefill.num_steps == (1 if num_rows <= 2 else 2)
    by_token = {
        token: step.graph
        for step in decode
        for token in range(step.first_token, step.last_token + 1)
    }
    assert by_token == {
        # The step that yields token n attends to the prompt and the n - 1 tokens before it.
        token: PLAN.choose(Phase.DECODE, num_rows, prompt_len + token - 1).name
        for token in range(2, new_tokens + 1)
    }
    assert sum(step.num_steps for step in decode) == new_tokens - 1


@pytest.mark.parametrize(("request_", "name"), [((0, 1), "prompt_len"), ((1, 0), "new_tokens")])
def test_an_empty_request_is_refused(request_: tuple[int, int], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0"):
        plan(*request_)
    with pytest.raises(ConfigError, match="rows=0"):
        plan(1, 1, 0)


@pytest.mark.parametrize("request_", [(33, 1), (32, 34), (4, 4, 5)])
def test_a_request_that_fits_no_graph_is_refused(request_: tuple[int, ...]) -> None:
    with pytest.raises(BucketError):
        plan(*request_)


def test_a_prompt_in_pieces() -> None:
    config = NeuronConfig(
        seq_len=64,
        max_context_length=16,
        batch_size=2,
        enable_bucketing=True,
        context_encoding_buckets=[8, 16],
        token_generation_buckets=[32, 64],
        chunked_prefill_config={},
    )
    steps = plan_request(plan_graphs(config), config, 37, 2, 2).steps
    assert steps == (
        GraphUse("context_encoding_model_b2_s16", 1, 1, 1),
        GraphUse("context_encoding_model_b2_s16_c32", 1, 1, 1),
        GraphUse("context_encoding_model_b2_s8_c64", 1, 1, 1),
        GraphUse("token_generation_model_b2_s64", 1, 2, 2),
    )
