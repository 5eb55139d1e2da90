"""One step of vLLM as calls of nxdi's graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.outputs import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    LogprobsLists,
    LogprobsTensors,
    ModelRunnerOutput,
)

from nxdi import env
from nxdi.generation.rows import Row, row_inputs
from nxdi.generation.token_choice import make_token_choice
from nxdi.generation.work import Work, batches
from nxdi.integrations.vllm.requests import RunningRequest
from nxdi.integrations.vllm.sampling import HostSampler
from nxdi.integrations.vllm.tables import independent, make_tables
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput


@dataclass
class _Result:
    """What the graphs returned for the last token of a row; None: the row's prompt goes on."""

    request: RunningRequest
    token: int | None = None
    logits: Tensor | None = None  # [1, vocab_size]


class ModelRunner:
    """Keeps the requests that run, computes their next tokens, and has them sampled."""

    def __init__(self, model: NeuronBaseForCausalLM, config: VllmConfig) -> None:
        self.model = model
        self._requests: dict[str, RunningRequest] = {}
        self._host = HostSampler(config, model.config.vocab_size)
        neuron = model.neuron_config
        self._tables, self._choice = make_tables(neuron), make_token_choice(neuron)
        self._block_size: int = config.cache_config.block_size
        self._always_on_host = not env.samples_on_device() or bool(
            config.model_config.logits_processors
        )
        self._seeds = torch.Generator().manual_seed(config.model_config.seed)
        self._results: list[_Result] = []

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput | None:
        """Compute a step. Returns: None if `sample` is to follow."""
        self._update(step)
        if not step.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        starts = self._starts(step)
        works = [
            Work(self._requests[name], starts[name], starts[name] + num_tokens)
            for name, num_tokens in step.num_scheduled_tokens.items()
        ]
        self._results = self._compute(works)
        return None

    def sample(self, grammar: GrammarOutput | None) -> ModelRunnerOutput:
        """The next token of every row of the step whose last token was computed."""
        results, self._results = self._results, []
        masks: dict[str, Any] = {}
        if grammar is not None:
            ids = grammar.structured_output_request_ids
            masks = dict(zip(ids, grammar.grammar_bitmask, strict=True))
        logprobs = self._sample_on_host(results, masks)
        sampled: list[list[int]] = []
        for result in results:
            sampled.append([] if result.token is None else [result.token])
            if result.token is not None:
                result.request.append(result.token)
        names = [result.request.id for result in results]
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=sampled,
            logprobs=logprobs,
            prompt_logprobs_dict=self._prompt_scores(results),
            pooler_output=[],
        )

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

    def _compute(self, works: Sequence[Work[RunningRequest]]) -> list[_Result]:
        """The results of the works, in their order."""
        found: list[_Result] = []
        for part in independent(works, self._block_size):
            found += [self._score(work) for work in part if _scores_prompt(work)]
            others = [work for work in part if not _scores_prompt(work)]
            for rows in batches(others, self.model.plan):
                found += self._run(rows)
        by_name = {result.request.id: result for result in found}
        return [by_name[work.request.id] for work in works]

    def _run(self, works: Sequence[Work[RunningRequest]]) -> list[_Result]:
        """Rows of one phase, in one call."""
        rows = [Row(work.tokens, work.start, work.request.table) for work in works]
        output = self._call(rows, [work.request for work in works])
        results = []
        for i, work in enumerate(works):
            request = work.request
            if not work.brings_token:
                results.append(_Result(request))
            elif request.on_host:
                assert output.logits is not None
                results.append(_Result(request, logits=output.logits[i]))
            else:
                results.append(_Result(request, token=self._choice.token(request, output, i)))
        return results

    def _score(self, work: Work[RunningRequest]) -> _Result:
        """A prompt whose tokens are scored: one at a time, since graphs return the last logits."""
        request = work.request
        num_top = request.params.prompt_logprobs
        assert num_top is not None
        result = _Result(request)
        for place in range(work.start, work.stop):
            rows = [Row([request.tokens[place]], place, request.table)]
            output = self._call(rows, [request])
            assert output.logits is not None
            if place + 1 < request.prompt_len:
                target = request.tokens[place + 1]
                request.prompt_scores.append(self._host.scores(output.logits[0], target, num_top))
            if place + 1 == len(request.tokens):
                result.logits = output.logits[0]
        return result

    def _call(self, rows: Sequence[Row], requests: Sequence[RunningRequest]) -> CausalLMOutput:
        inputs = row_inputs(self.model.neuron_config, rows)
        return self.model(**inputs, **self._choice.inputs(requests))

    # Sampling.

    def _sample_on_host(
        self, results: list[_Result], masks: dict[str, Any]
    ) -> LogprobsLists | None:
        """Give the results with logits a token. Returns: log-probabilities, a row per result."""
        of_row = {i: result.logits for i, result in enumerate(results) if result.logits is not None}
        if not of_row:
            return None
        hosted, logits = list(of_row), torch.cat(list(of_row.values()))
        output = self._host.sample([results[i].request for i in hosted], logits, masks)
        for i, token in zip(hosted, output.sampled_token_ids.flatten().tolist(), strict=True):
            results[i].token = token
        if output.logprobs_tensors is None:
            return None
        found = output.logprobs_tensors.tolists()
        return LogprobsLists(*(_spread(part, hosted, len(results)) for part in found[:3]))

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


def _spread(values: np.ndarray[Any, Any], rows: Sequence[int], num_rows: int) -> Any:
    """`values` at their rows; zeros elsewhere, which nobody reads."""
    spread = np.zeros((num_rows, *values.shape[1:]), values.dtype)
    spread[list(rows)] = values
    return spread
