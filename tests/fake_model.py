"""A model that the batcher cannot tell from a real one, and that shows every mistake of its caller.

Its cache holds, where the caller says, a digest of each token and of all that was read before it.
Its logits follow from all that a row reads back. So a wrong slot, a stale or foreign block, or a
missing token changes the tokens that follow; `expected` says what they must be.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig

from nxdi.config import OnDeviceSamplingConfig
from nxdi.errors import ShapeError
from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.graph.sampling_inputs import uniform_for
from nxdi.models.causal_lm import CausalLMOutput
from nxdi.modules.sampling import DynamicSampler, make_sampler
from nxdi.types import Phase

VOCAB_SIZE = 41


@dataclass(frozen=True)
class FakeGraph:
    phase: Phase
    batch_size: int
    num_tokens: int
    length: int
    context: int = 0


@dataclass(frozen=True)
class FakePlan:
    graphs: tuple[FakeGraph, ...]

    def of(self, phase: Phase) -> tuple[FakeGraph, ...]:
        return tuple(graph for graph in self.graphs if graph.phase == phase)

    def max_batch(self, phase: Phase) -> int:
        return max(graph.batch_size for graph in self.of(phase))

    def max_length(self, phase: Phase) -> int:
        return max(graph.length for graph in self.of(phase))


@dataclass
class FakeModel:
    """Options as NeuronConfig's; chunk: tokens of the EXTEND graph, None: there is none.

    async_mode: a class attribute, so that tests can run either way without saying so each time.
    calls: (phase, tokens of each row) of every call so far.
    fail_in: the number of calls after which one call fails.
    """

    rows: int = 4
    seq_len: int = 64
    max_context_length: int = 16
    ctx_batch_size: int = 2
    chunk: int | None = 8
    blocks: int | None = 40  # None: the contiguous layout
    block_size: int = 4
    shares_prefixes: bool = False
    sampling: OnDeviceSamplingConfig | None = None
    output_logits: bool = False
    allow_input_truncation: bool = False
    prefill_again_at: int | None = None
    max_context: int | None = None  # tokens that the EXTEND graph sees, if not seq_len
    calls: list[tuple[Phase, list[int]]] = field(default_factory=list)
    fail_in: int | None = None
    async_mode: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.config = SimpleNamespace(vocab_size=VOCAB_SIZE)
        self.neuron_config = SimpleNamespace(
            proposes_in_graph=False,
            is_medusa=False,
            tkg_batch_size=self.rows,
            max_context_length=self.max_context_length,
            allow_input_truncation=self.allow_input_truncation,
            is_block_kv_layout=self.blocks is not None,
            pa_num_blocks=self.blocks,
            pa_block_size=self.block_size,
            is_prefix_caching=self.shares_prefixes,
            on_device_sampling_config=self.sampling,
            output_logits=self.output_logits,
            async_mode=self.async_mode,
        )
        graphs = [
            FakeGraph(
                Phase.PREFILL, self.ctx_batch_size, self.max_context_length, self.max_context_length
            ),
            FakeGraph(Phase.DECODE, self.rows, 1, self.seq_len),
        ]
        if self.chunk is not None:
            context = self.max_context or self.seq_len
            graphs.append(FakeGraph(Phase.EXTEND, 2, self.chunk, self.chunk, context))
        self.plan = FakePlan(tuple(graphs))
        self.cache: dict[int, int] = {}

    def __call__(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor,
        seq_ids: Tensor,
        block_table: Tensor | None = None,
        sampling_params: Tensor | None = None,
        seeds: Sequence[int] | None = None,
    ) -> CausalLMOutput:
        if self.fail_in is not None:
            self.fail_in -= 1
            if self.fail_in < 0:
                self.fail_in = None
                raise RuntimeError("the device is gone")
        assert {input_ids.dtype, position_ids.dtype, seq_ids.dtype} == {torch.int32}
        rows = [
            (ids[: len(places)], places)
            for ids, places in zip(input_ids.tolist(), map(_real, position_ids), strict=True)
        ]
        self.calls.append((self._phase(rows), [len(places) for _, places in rows]))
        slots = self._slots([places[-1] + 1 for _, places in rows], seq_ids, block_table)
        written = [
            s for of_row, (_, places) in zip(slots, rows, strict=True) for s in of_row[places[0] :]
        ]
        assert len(set(written)) == len(written), "two rows write to one slot"
        for of_row, (ids, places) in zip(slots, rows, strict=True):
            is_long = self._is_long(places[-1])
            digest = fold([self.cache[slot] for slot in of_row[: places[0]]])
            for token, place in zip(ids, places, strict=True):
                self.cache[of_row[place]] = entry(digest, token, is_long)
                digest = fold([self.cache[of_row[place]]], digest)
        logits = torch.stack(
            [
                logits_of(fold([self.cache[s] for s in of_row]), self._is_long(places[-1]))
                for of_row, (_, places) in zip(slots, rows, strict=True)
            ]
        )
        return self._output(logits, [places[-1] for _, places in rows], sampling_params, seeds)

    def _is_long(self, position: int) -> bool:
        return self.prefill_again_at is not None and position >= self.prefill_again_at

    def _phase(self, rows: list[tuple[list[int], list[int]]]) -> Phase:
        starts = [places[0] for _, places in rows]
        counts = [len(places) for _, places in rows]
        for _, places in rows:
            assert places == list(range(places[0], places[0] + len(places)))
            assert places[-1] < self.seq_len
        assert all(starts) or not any(starts), "rows of two kinds in one call"
        if not any(starts):
            phase = Phase.PREFILL
        else:
            phase = Phase.DECODE if max(counts) == 1 else Phase.EXTEND
            assert phase is Phase.DECODE or min(counts) > 1
            if self.prefill_again_at in starts:
                raise ShapeError("LongRoPE starts over here")
        (graph,) = self.plan.of(phase)
        assert len(rows) <= graph.batch_size
        assert max(counts) <= graph.num_tokens
        return phase

    def _slots(
        self, lengths: list[int], seq_ids: Tensor, block_table: Tensor | None
    ) -> list[list[int]]:
        """Where the cache holds each token of each row."""
        ids = seq_ids.tolist()
        assert len(set(ids)) == len(ids) == len(lengths)
        assert all(0 <= i < self.rows for i in ids)
        if self.blocks is None:
            assert block_table is None
            return [
                [i * self.seq_len + p for p in range(length)]
                for i, length in zip(ids, lengths, strict=True)
            ]
        assert block_table is not None
        assert block_table.dtype == torch.int32
        size, slots = self.block_size, []
        for length, table in zip(lengths, block_table.tolist(), strict=True):
            used = table[: -(-length // size)]
            assert len(set(used)) == -(-length // size)
            assert all(0 <= block < self.blocks for block in used)
            slots.append([used[p // size] * size + p % size for p in range(length)])
        return slots

    def _output(
        self,
        logits: Tensor,
        positions: list[int],
        params: Tensor | None,
        seeds: Sequence[int] | None,
    ) -> CausalLMOutput:
        if self.sampling is None:
            assert params is seeds is None
            return CausalLMOutput(logits.unsqueeze(1))
        samples = self.sampling.do_sample or self.sampling.dynamic
        assert (params is not None) is (seeds is not None) is samples
        uniform = uniform_for(seeds, torch.tensor(positions)) if seeds is not None else None
        tokens = make_sampler(self.sampling)(logits, params, uniform)
        return CausalLMOutput(logits.unsqueeze(1) if self.output_logits else None, tokens)

    def greedy(self, prompt: Sequence[int], num_new: int) -> list[int]:
        return self.expected(prompt, num_new, RequestOptions())

    def expected(self, prompt: Sequence[int], num_new: int, options: RequestOptions) -> list[int]:
        """What a request must generate, computed without a cache."""
        tokens = list(prompt)
        for _ in range(num_new):
            logits = self.expected_logits(tokens)
            if options.do_sample:
                params = torch.tensor([options.sampling_params])
                uniform = uniform_for([options.seed], torch.tensor([len(tokens) - 1]))
                tokens.append(int(DynamicSampler()(logits.unsqueeze(0), params, uniform)))
            else:
                tokens.append(int(logits.argmax()))
        return tokens[len(prompt) :]

    def expected_logits(self, tokens: Sequence[int]) -> Tensor:
        is_long = self._is_long(len(tokens) - 1)
        digest = fold([])
        for token in tokens:
            digest = fold([entry(digest, token, is_long)], digest)
        return logits_of(digest, is_long)


def _real(positions: Tensor) -> list[int]:
    """The positions of one row without its padding, which is on the right."""
    places: list[int] = positions.tolist()
    count = len(places) if -1 not in places else places.index(-1)
    assert count > 0
    assert set(places[count:]) <= {-1}
    return places[:count]


def entry(digest: int, token: int, is_long: bool) -> int:
    """What the cache holds of a token, after all that `digest` stands for."""
    return hash((digest, token, is_long))


def fold(entries: Sequence[int], digest: int = 7) -> int:
    """One number for a row of cache entries."""
    for value in entries:
        digest = hash((digest, value))
    return digest


def logits_of(digest: int, is_long: bool) -> Tensor:
    generator = torch.Generator().manual_seed(hash((digest, is_long)) % 2**63)
    return 2 * torch.randn(VOCAB_SIZE, generator=generator)


def batcher(model: FakeModel, **options: Any) -> ContinuousBatcher:
    """A batcher without end-of-sequence tokens, unless the options say otherwise."""
    return ContinuousBatcher(model, **{"generation_config": GenerationConfig(), **options})


def some_prompts(seed: int, number: int, longest: int = 16) -> list[list[int]]:
    """Prompts of which many start alike."""
    draw = random.Random(seed)
    starts = [[draw.randrange(VOCAB_SIZE) for _ in range(longest)] for _ in range(3)]
    return [
        draw.choice(starts)[: draw.randint(0, longest - 1)]
        + [draw.randrange(VOCAB_SIZE) for _ in range(draw.randint(1, 4))]
        for _ in range(number)
    ]
