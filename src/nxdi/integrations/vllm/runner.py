"""One step of vLLM as calls of nxdi's graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.outputs import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    DraftTokenIds,
    LogprobsLists,
    LogprobsTensors,
    ModelRunnerOutput,
)

from nxdi import env
from nxdi.generation.rows import Row, row_inputs
from nxdi.generation.speculation.proposals import Proposal, Proposer, Seen
from nxdi.generation.speculation.rules import SeededRule
from nxdi.generation.work import Work, batches
from nxdi.integrations.vllm.logprobs import joined
from nxdi.integrations.vllm.requests import RunningRequest
from nxdi.integrations.vllm.sampling import HostSampler
from nxdi.integrations.vllm.speculation import Drafts
from nxdi.integrations.vllm.tables import independent, make_tables
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput


@dataclass
class _Result:
    """What a call has computed of a request.

    work: the tokens that vLLM knows; drafts: those that were proposed to follow them. output, row:
    of the call. logits [n, vocab_size]: after the last known token and each draft, if the host is
    to choose what follows; tokens: those that are chosen.
    """

    work: Work[RunningRequest]
    output: CausalLMOutput
    row: int
    drafts: Sequence[int] = ()
    logits: Tensor | None = None
    tokens: list[int] = field(default_factory=list)

    @property
    def request(self) -> RunningRequest:
        return self.work.request

    @property
    def is_chosen(self) -> bool:
        """Whether a token is chosen that no draft has foreseen, after which none can follow."""
        return len(self.tokens) > len(self.drafts) or any(
            token != draft for token, draft in zip(self.tokens, self.drafts, strict=False)
        )

    @property
    def seen(self) -> Seen:
        """The tokens that the target has computed, and that stay."""
        kept = [*self.work.tokens, *self.tokens[:-1]]
        return Seen(self.request, kept, self.work.start, self.output, self.row)


class ModelRunner:
    """Keeps the requests that run, computes their next tokens, and has them sampled."""

    def __init__(
        self, model: NeuronBaseForCausalLM, config: VllmConfig, proposer: Proposer | None = None
    ) -> None:
        self.model = model
        self._drafts = None if proposer is None else Drafts(model, proposer)
        self._going_on: list[RunningRequest] = []  # those that the last step brought a token
        self._requests: dict[str, RunningRequest] = {}
        self._host = HostSampler(config, model.config.vocab_size)
        neuron = model.neuron_config
        self._tables, self._rule = make_tables(neuron), SeededRule(neuron, None)
        self._block_size: int = config.cache_config.block_size
        self._always_on_host = not env.samples_on_device() or bool(
            config.model_config.logits_processors
        )
        self._seeds = torch.Generator().manual_seed(config.model_config.seed)
        self._results: list[_Result] = []
        self._num_drafts: dict[str, int] = {}  # of the step, by request

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput | None:
        """Compute a step. Returns: None if `sample` is to follow."""
        self._update(step)
        if not step.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        starts = self._starts(step)
        drafts = step.scheduled_spec_decode_tokens
        self._num_drafts = {name: len(tokens) for name, tokens in drafts.items()}
        works = []
        for name, num_tokens in step.num_scheduled_tokens.items():
            stop = starts[name] + num_tokens - self._num_drafts.get(name, 0)
            works.append(Work(self._requests[name], starts[name], stop))
        # From the first draft on that a grammar forbids, vLLM puts -1.
        allowed = {
            name: list(takewhile(lambda token: token >= 0, tokens))
            for name, tokens in drafts.items()
        }
        self._results = self._compute(works, allowed)
        return None

    def sample(self, grammar: GrammarOutput | None) -> ModelRunnerOutput:
        """The next token of every row of the step whose last token was computed."""
        results, self._results = self._results, []
        masks: dict[str, Any] = {}
        if grammar is not None:
            ids = grammar.structured_output_request_ids
            masks = _by_request(ids, grammar.grammar_bitmask, self._num_drafts)
        logprobs = self._sample_on_host(results, masks)
        if self._drafts is not None:
            self._drafts.watch([result.seen for result in results])
        self._going_on = [result.request for result in results if result.tokens]
        names = [result.request.id for result in results]
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[result.tokens for result in results],
            logprobs=logprobs,
            prompt_logprobs_dict=self._prompt_scores(results),
            pooler_output=[],
        )

    def propose(self) -> DraftTokenIds | None:
        """What may follow the tokens of the last step; None without speculation."""
        return None if self._drafts is None else self._drafts.propose(self._going_on)

    # The requests.

    def _update(self, step: SchedulerOutput) -> None:
        for name in step.finished_req_ids:
            if name in self._requests:
                self._tables.release(self._requests.pop(name).table)
        for data in step.scheduled_new_reqs:
            seed = int(torch.randint(2**63 - 1, (), generator=self._seeds))
            request = RunningRequest.from_vllm(data, seed, self._always_on_host)
            self._requests[request.id] = request
            self._tables.add(request.table, data.block_ids[0])
        cached = step.scheduled_cached_reqs
        for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            request = self._requests[name]
            if name in cached.resumed_req_ids:  # preempted meanwhile: all its blocks are others
                self._tables.release(request.table)
                request.prompt_scores.clear()
            if blocks is not None:
                self._tables.add(request.table, blocks[0])

    @staticmethod
    def _starts(step: SchedulerOutput) -> dict[str, int]:
        cached = step.scheduled_cached_reqs
        starts = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        return starts | {data.req_id: data.num_computed_tokens for data in step.scheduled_new_reqs}

    # Computing.

    def _compute(
        self, works: Sequence[Work[RunningRequest]], drafts: Mapping[str, Sequence[int]]
    ) -> list[_Result]:
        """The results of the works, in their order."""
        found: list[_Result] = []
        for part in independent(works, self._block_size):
            found += [self._score(work) for work in part if _scores_prompt(work)]
            others = [work for work in part if not _scores_prompt(work)]
            verified = [work for work in others if drafts.get(work.request.id)]
            if verified:
                found += self._run(verified, drafts)
            for rows in batches([work for work in others if work not in verified], self.model.plan):
                found += self._run(rows, {})
        by_name = {result.request.id: result for result in found}
        return [by_name[work.request.id] for work in works]

    def _run(
        self, works: Sequence[Work[RunningRequest]], drafts: Mapping[str, Sequence[int]]
    ) -> list[_Result]:
        """Rows of one phase, in one call; with `drafts`, all of them have some."""
        proposed = [drafts.get(work.request.id, ()) for work in works]
        rows = [
            Row([*work.tokens, *more], work.start, work.request.table)
            for work, more in zip(works, proposed, strict=True)
        ]
        call = self.model.verify if drafts else self.model
        output = self._call(call, rows, [work.request for work in works])
        results = [
            _Result(work, output, i, more)
            for i, (work, more) in enumerate(zip(works, proposed, strict=True))
        ]
        for result in results:
            if result.work.brings_token:
                self._choose(result)
        return results

    def _choose(self, result: _Result) -> None:
        """Have the tokens of a request, or the logits that the host is to choose from."""
        request, output = result.request, result.output
        if request.on_host:
            assert output.logits is not None
            result.logits = output.logits[result.row, : len(result.drafts) + 1]
            return
        result.tokens = self._rule.accept(
            request, Proposal(list(result.drafts)), output, result.row
        ).tokens
        request.extend(result.tokens)

    def _score(self, work: Work[RunningRequest]) -> _Result:
        """A prompt whose tokens are scored: one at a time, since graphs return the last logits."""
        request = work.request
        num_top = request.params.prompt_logprobs
        assert num_top is not None
        for place in range(work.start, work.stop):
            rows = [Row([request.tokens[place]], place, request.table)]
            output = self._call(self.model, rows, [request])
            assert output.logits is not None
            if place + 1 < request.prompt_len:
                target = request.tokens[place + 1]
                request.prompt_scores.append(self._host.scores(output.logits[0], target, num_top))
        # A draft head begins with the last one, the only one that is in the output.
        result = _Result(Work(request, work.stop - 1, work.stop), output, 0)
        if work.brings_token:
            assert output.logits is not None
            result.logits = output.logits[0]
        return result

    def _call(
        self,
        call: Callable[..., CausalLMOutput],
        rows: Sequence[Row],
        requests: Sequence[RunningRequest],
    ) -> CausalLMOutput:
        inputs = row_inputs(self.model.neuron_config, rows)
        return call(**inputs, **self._rule.inputs(requests))

    # Sampling.

    def _sample_on_host(
        self, results: list[_Result], masks: dict[str, Any]
    ) -> LogprobsLists | None:
        """Give the results with logits their tokens, one after the other as without drafts.

        Returns: log-probabilities, a row per token.
        """
        found: dict[tuple[int, int], LogprobsLists] = {}
        hosted = {i: result for i, result in enumerate(results) if result.logits is not None}
        place = 0
        while hosted:
            chosen = self._sample(list(hosted.values()), place, masks)
            for row, i in enumerate(hosted):
                if chosen is not None:
                    found[i, place] = LogprobsLists(*(part[row] for part in chosen[:3]))
            place += 1
            hosted = {i: result for i, result in hosted.items() if not result.is_chosen}
        return joined(found, [len(result.tokens) for result in results])

    def _sample(
        self, results: Sequence[_Result], place: int, masks: dict[str, Any]
    ) -> LogprobsLists | None:
        """One token more for each. Returns: log-probabilities, if anybody asks."""
        requests = [result.request for result in results]
        logits = [result.logits[place] for result in results if result.logits is not None]
        names = [request.id for request in requests]
        of_place = {name: masks[name][place] for name in names if name in masks}
        output = self._host.sample(requests, torch.stack(logits), of_place)
        for result, token in zip(results, output.sampled_token_ids.flatten().tolist(), strict=True):
            result.tokens.append(token)
            result.request.extend([token])
        tensors = output.logprobs_tensors
        return None if tensors is None else tensors.tolists()

    def _prompt_scores(self, results: Sequence[_Result]) -> dict[str, LogprobsTensors | None]:
        """Of the prompts that this step has completed."""
        complete: dict[str, LogprobsTensors | None] = {}
        for result in results:
            request = result.request
            if request.prompt_scores and len(request.prompt_scores) == request.prompt_len - 1:
                complete[request.id] = LogprobsTensors.cat(request.prompt_scores)
                request.prompt_scores, request.is_scored = [], True
        return complete


def _scores_prompt(work: Work[RunningRequest]) -> bool:
    request = work.request
    is_asked = request.params.prompt_logprobs is not None
    return is_asked and not request.is_scored and work.start < request.prompt_len


def _by_request(
    names: Sequence[str], rows: np.ndarray[Any, Any], num_drafts: Mapping[str, int]
) -> dict[str, Any]:
    """The rows of a bit mask that belong to each request: one, and one for each of its drafts."""
    masks, start = {}, 0
    for name in names:
        stop = start + 1 + num_drafts.get(name, 0)
        masks[name], start = rows[start:stop], stop
    return masks
