"""`vllm.LLM` on nxdi's graphs gives what transformers gives, whatever runs beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tolerances import LOGITS_FP32

NUM_PROMPTS = 12


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts of 1 to 90 printable characters; half of them begin with the same 40."""
    draw = torch.Generator().manual_seed(3)
    shared = torch.randint(0, 94, (40,), generator=draw).tolist()
    found = []
    for i in range(NUM_PROMPTS):
        length = int(torch.randint(1, 50, (), generator=draw))
        own = torch.randint(0, 94, (length,), generator=draw).tolist()
        found.append([*shared, *own] if i % 2 else own)
    return found


@pytest.fixture(scope="session")
def greedy(reference: Any, prompts: list[list[int]]) -> list[list[int]]:
    """16 tokens of each prompt, computed by transformers, one prompt at a time."""
    return [continue_greedily(reference, prompt, 16) for prompt in prompts]


def continue_greedily(reference: Any, prompt: Sequence[int], num_new: int) -> list[int]:
    tokens = reference.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=num_new,
        do_sample=False,
    )
    new: list[int] = tokens[0, len(prompt) :].tolist()
    return new


def run(llm: Any, prompts: Sequence[Sequence[int]], params: Any) -> list[Any]:
    inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    found: list[Any] = llm.generate(inputs, params, use_tqdm=False)
    return found


def tokens_of(outputs: Sequence[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def params(**options: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**{"temperature": 0, "max_tokens": 16, **options})


LAYOUTS = {
    "rows": {},
    "one row": {"max_num_seqs": 1},
    "many rows": {"max_num_seqs": 16},
    "two ranks": {"tensor_parallel_size": 2},
    "blocks": {"block_size": 16, "neuron": {"is_block_kv_layout": True}},
    "few blocks": {
        "block_size": 16,
        "num_gpu_blocks_override": 13,
        "neuron": {"is_block_kv_layout": True},
    },
    "prefixes": {"block_size": 8, "enable_prefix_caching": True},
    "chunks": {"enable_chunked_prefill": True, "max_num_batched_tokens": 24},
    "chunks of prefixes": {
        "block_size": 8,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 24,
        "tensor_parallel_size": 2,
    },
    "no buckets": {"neuron": {"enable_bucketing": False}},
    "buckets": {
        "neuron": {
            "context_encoding_buckets": [64, 128],
            "token_generation_buckets": [64, 128],
            "token_generation_batches": [1, 2, 4],
        }
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_tokens_are_those_of_transformers(
    make_llm: Any, prompts: list[list[int]], greedy: list[list[int]], layout: str
) -> None:
    llm = make_llm(**LAYOUTS[layout])
    for _ in range(2):  # the second time, prefixes are found
        assert tokens_of(run(llm, prompts, params())) == greedy


def test_prefixes_are_found(make_llm: Any, prompts: list[list[int]]) -> None:
    llm = make_llm(block_size=8, enable_prefix_caching=True)
    run(llm, prompts[:2], params())
    again = run(llm, prompts[:2], params())
    assert [output.num_cached_tokens for output in again] == [
        (len(prompt) - 1) // 8 * 8 for prompt in prompts[:2]
    ]


@pytest.mark.parametrize("ctx_batch_size", [1, 4])
def test_a_prefix_is_found_in_the_step_that_computes_it(
    make_llm: Any, reference: Any, prompts: list[list[int]], ctx_batch_size: int
) -> None:
    """Of three requests of one step, each goes on where the one before it ends."""
    llm = make_llm(
        block_size=8, enable_prefix_caching=True, neuron={"ctx_batch_size": ctx_batch_size}
    )
    longest = [*prompts[1], *prompts[3]][:80]
    run(llm, [longest[:24]], params())
    nested = [longest[:48], longest[:64], longest]
    found = tokens_of(run(llm, nested, params()))
    assert found == [continue_greedily(reference, prompt, 16) for prompt in nested]


def test_requests_of_one_batch_have_their_own_sampling(
    make_llm: Any, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    """Each gets what it gets alone: greedy, sampled in the graph, sampled on the host."""
    llm = make_llm()
    different = [
        params(),
        params(temperature=1.3, seed=5),
        params(temperature=0.8, top_k=7, top_p=0.9, seed=6),
        params(temperature=1.0, top_k=-1, seed=7, presence_penalty=0.5),
        params(logprobs=3),
        params(temperature=1.1, min_p=0.02, seed=8),
        params(repetition_penalty=1.4),
        params(temperature=1.3, seed=5, logit_bias={65: 2.0}),
    ]
    together = tokens_of(run(llm, prompts[:8], different))
    alone = [
        tokens_of(run(llm, [prompt], own))[0]
        for prompt, own in zip(prompts[:8], different, strict=True)
    ]
    assert together == alone
    assert together[0] == greedy[0]
    assert together[4] == greedy[4]
    assert together[1] != greedy[1]


def test_a_seed_decides_the_tokens(make_llm: Any, prompts: list[list[int]]) -> None:
    llm = make_llm()
    first, again, other = (
        tokens_of(run(llm, prompts[:4], params(temperature=1.5, seed=seed))) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    unseeded = [tokens_of(run(llm, prompts[:1], params(temperature=1.5))) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_many_answers_to_one_prompt(make_llm: Any, prompts: list[list[int]]) -> None:
    (output,) = run(make_llm(), prompts[:1], params(n=6, temperature=1.5, seed=1))
    answers = {tuple(answer.token_ids) for answer in output.outputs}
    assert len(output.outputs) == 6
    assert len(answers) > 1


def test_log_probabilities(
    make_llm: Any, reference: Any, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    prompt, answer = prompts[1], greedy[1]
    mixed = [params(), params(logprobs=5, prompt_logprobs=2), params(logprobs=0)]
    outputs = run(make_llm(), [prompts[0], prompt, prompts[2]], mixed)
    assert tokens_of(outputs) == [greedy[0], answer, greedy[2]]
    expected = log_probabilities(reference, [*prompt, *answer])
    for place, found in enumerate(outputs[1].outputs[0].logprobs):
        check_scores(found, answer[place], expected[len(prompt) + place - 1], 5)
    scores = outputs[1].prompt_logprobs
    assert scores[0] is None
    assert len(scores) == len(prompt)
    for place, found in enumerate(scores[1:]):
        check_scores(found, prompt[place + 1], expected[place], 2)
    assert [len(found) for found in outputs[2].outputs[0].logprobs] == [1] * 16
    assert outputs[0].outputs[0].logprobs is None


def log_probabilities(reference: Any, tokens: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = reference(torch.tensor([list(tokens)])).logits
    found: torch.Tensor = logits[0].log_softmax(-1)
    return found


def check_scores(found: Any, token: int, expected: torch.Tensor, num_top: int) -> None:
    top = expected.topk(num_top)
    assert set(found) == {token, *top.indices.tolist()}
    for other, score in found.items():
        assert math.isclose(score.logprob, float(expected[other]), abs_tol=LOGITS_FP32)


def test_prompt_scores_after_chunks(
    make_llm: Any, reference: Any, prompts: list[list[int]]
) -> None:
    llm = make_llm(
        enable_chunked_prefill=True,
        max_num_batched_tokens=24,
        enable_prefix_caching=True,
        block_size=8,
    )
    prompt = prompts[3]
    for _ in range(2):
        (output,) = run(llm, [prompt], params(prompt_logprobs=0, max_tokens=2))
        expected = log_probabilities(reference, prompt)
        for place, found in enumerate(output.prompt_logprobs[1:]):
            check_scores(found, prompt[place + 1], expected[place], 0)


def test_constraints_on_tokens(make_llm: Any, prompts: list[list[int]]) -> None:
    llm, prompt = make_llm(), prompts[0]
    free = tokens_of(run(llm, [prompt], params()))[0]
    (allowed,) = tokens_of(run(llm, [prompt], params(allowed_token_ids=[1, 2, 3])))
    assert set(allowed) <= {1, 2, 3}
    (biased,) = tokens_of(run(llm, [prompt], params(logit_bias={77: 100.0})))
    assert biased == [77] * 16
    (punished,) = tokens_of(run(llm, [prompt], params(presence_penalty=2.0, frequency_penalty=2.0)))
    assert len(set(punished)) > len(set(free))
    ends = params(logit_bias={256: 100.0}, min_tokens=3)
    (ended,) = tokens_of(run(llm, [prompt], ends))
    assert len(ended) == 4
    assert ended[3] == 256


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"choice": ["red", "green", "blue"]}, "red|green|blue"),
        ({"regex": "[0-9]{3}-[a-c]{2}"}, "[0-9]{3}-[a-c]{2}"),
        (
            {
                "json": {
                    "type": "object",
                    "properties": {"a": {"type": "boolean"}},
                    "required": ["a"],
                    "additionalProperties": False,
                }
            },
            r'\{\s*"a"\s*:\s*(true|false)\s*\}',
        ),
        ({"grammar": 'root ::= "x" ("y" | "z") "!"'}, "x[yz]!"),
    ],
)
def test_structured_outputs(
    make_llm: Any,
    prompts: list[list[int]],
    greedy: list[list[int]],
    constraint: dict[str, Any],
    pattern: str,
) -> None:
    import re

    from vllm.sampling_params import StructuredOutputsParams

    constrained = params(structured_outputs=StructuredOutputsParams(**constraint), max_tokens=60)
    outputs = run(make_llm(), prompts[:3], [params(), constrained, constrained])
    assert tokens_of(outputs)[0] == greedy[0]
    for output in outputs[1:]:
        assert re.fullmatch(pattern, output.outputs[0].text)


def test_logits_processors_of_ones_own(make_llm: Any, prompts: list[list[int]]) -> None:
    from vllm.v1.sample.logits_processor import LogitsProcessor

    class Counting(LogitsProcessor):
        """Forces token n as the n-th of each request."""

        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            self.outputs: dict[int, list[int]] = {}

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            for row, _, _, outputs in batch_update.added if batch_update else ():
                self.outputs[row] = outputs

        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            for row, outputs in self.outputs.items():
                logits[row, len(outputs)] = 1000.0
            return logits

    llm = make_llm(logits_processors=[Counting])
    # The number of rows changes as requests end.
    lengths = [params(max_tokens=length) for length in (3, 9, 16, 5)]
    found = tokens_of(run(llm, prompts[:4], lengths))
    assert found == [list(range(length)) for length in (3, 9, 16, 5)]


def test_stop_strings_and_tokens(
    make_llm: Any, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    llm = make_llm()
    stop = greedy[0][5]
    expected = greedy[0][: greedy[0].index(stop) + 1]
    assert tokens_of(run(llm, prompts[:1], params(stop_token_ids=[stop]))) == [expected]
