"""Which graphs a request will use."""

from __future__ import annotations

from collections.abc import Iterator

from nxdi.config import NeuronConfig
from nxdi.errors import BucketError, ConfigError
from nxdi.graph.plan import GraphPlan, check_capacity
from nxdi.tools.model_info.records import GraphUse, RequestInfo
from nxdi.types import Phase


def plan_request(
    plan: GraphPlan, config: NeuronConfig, prompt_len: int, new_tokens: int, num_rows: int = 1
) -> RequestInfo:
    """The graphs that generate `new_tokens` for each of `num_rows` prompts, in order.

    Raises: ConfigError for a number below 1; BucketError if the request fits no graph.
    """
    for name, value in (("prompt_len", prompt_len), ("new_tokens", new_tokens), ("rows", num_rows)):
        if value < 1:
            raise ConfigError(f"a request with {name}={value} is none; give 1 or more")
    if num_rows > plan.max_batch(Phase.DECODE):
        raise BucketError(
            f"{num_rows} prompts do not fit batch_size={plan.max_batch(Phase.DECODE)}; ask for "
            "fewer, or raise batch_size"
        )
    check_capacity(config, prompt_len, new_tokens)
    prefill = _prefill_steps(plan, prompt_len, num_rows)
    decode = _decode_steps(plan, prompt_len, new_tokens, num_rows)
    return RequestInfo(prompt_len, new_tokens, num_rows, (*prefill, *decode))


def _prefill_steps(plan: GraphPlan, prompt_len: int, num_rows: int) -> Iterator[GraphUse]:
    """The step, or the steps one after another, that yield the first token."""
    widest, longest = plan.max_batch(Phase.PREFILL), plan.max_length(Phase.PREFILL)
    rows, repeats = min(num_rows, widest), -(-num_rows // widest)
    piece = min(prompt_len, longest) if Phase.EXTEND in plan.phases else prompt_len
    yield GraphUse(plan.choose(Phase.PREFILL, rows, piece).name, repeats, 1, 1)
    for start in range(piece, prompt_len, longest):
        stop = min(start + longest, prompt_len)
        yield GraphUse(plan.choose(Phase.EXTEND, rows, stop - start, stop).name, repeats, 1, 1)


def _decode_steps(
    plan: GraphPlan, prompt_len: int, new_tokens: int, num_rows: int
) -> Iterator[GraphUse]:
    token = 2  # the step that yields it attends to the prompt and every token before it
    while token <= new_tokens:
        graph = plan.choose(Phase.DECODE, num_rows, prompt_len + token - 1)
        last = min(new_tokens, graph.length - prompt_len + 1)
        yield GraphUse(graph.name, last - token + 1, token, last)
        token = last + 1
