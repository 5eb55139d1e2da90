"""Which requests the graph can sample, which the host must, and vLLM's sampler for these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors, build_logitsprocs
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.outputs import LogprobsTensors, SamplerOutput

    from nxdi.integrations.vllm.requests import RunningRequest


def needs_host(params: SamplingParams) -> bool:
    """Whether a request asks for more than temperature, top_k, top_p and seed.

    It does not change while the request runs, so neither do the random numbers of a seed.
    """
    return bool(
        params.logprobs is not None
        or params.prompt_logprobs is not None
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1
        or params.min_p
        or params.min_tokens
        or params.logit_bias
        or params.bad_words
        or params.allowed_token_ids is not None
        or params.structured_outputs is not None
        or params.extra_args
    )


def check_params(params: Any) -> None:
    """Raises: vLLM's error for a bad request, for parameters that nxdi does not know."""
    if not isinstance(params, SamplingParams):
        raise VLLMValidationError("nxdi generates text only; pooling is not supported")
    for name in ("logprob_token_ids", "thinking_token_budget"):
        if getattr(params, name, None) is not None:
            raise VLLMValidationError(f"nxdi does not support {name}; leave it out")


class HostSampler:
    """vLLM's sampler over the logits of some requests."""

    def __init__(self, config: VllmConfig, vocab_size: int) -> None:
        self._config, self._vocab_size = config, vocab_size
        self._sampler = Sampler(config.model_config.logprobs_mode)
        self._of: list[RunningRequest] = []  # the requests that the processors know
        self._processors = LogitsProcessors()

    def sample(
        self, requests: Sequence[RunningRequest], logits: Tensor, masks: dict[str, Any]
    ) -> SamplerOutput:
        """Tokens [B, 1] and log-probabilities.

        logits [B, vocab_size]; masks: allowed tokens as bits, by request id.
        """
        logits = logits.float()  # a copy, or the graph's own result, which nobody else reads
        for row, request in enumerate(requests):
            if request.id in masks:
                logits[row].masked_fill_(~_unpack(masks[request.id], self._vocab_size), -torch.inf)
        output: SamplerOutput = self._sampler(logits, self._metadata(requests))
        return output

    def scores(self, logits: Tensor, token: int, num_top: int) -> LogprobsTensors:
        """The log-probabilities of a prompt's token and of the likeliest; logits [1, V]."""
        values = self._sampler.compute_logprobs(logits)
        most = self._vocab_size if num_top == -1 else num_top
        found: LogprobsTensors = self._sampler.gather_logprobs(values, most, torch.tensor([token]))
        return found

    def _metadata(self, requests: Sequence[RunningRequest]) -> SamplingMetadata:
        all_params = [request.params for request in requests]
        temperatures = [params.temperature for params in all_params]
        is_greedy = [temperature == 0 for temperature in temperatures]
        asked = [_num_logprobs(params, self._vocab_size) for params in all_params]
        penalties = [
            (params.frequency_penalty, params.presence_penalty, params.repetition_penalty)
            for params in all_params
        ]
        no_penalties = all(penalty == (0, 0, 1) for penalty in penalties)
        frequency, presence, repetition = torch.tensor(penalties, dtype=torch.float32).T
        top_k = [params.top_k if params.top_k > 0 else self._vocab_size for params in all_params]
        return SamplingMetadata(
            temperature=torch.tensor(temperatures),
            all_greedy=all(is_greedy),
            all_random=not any(is_greedy),
            top_p=_unless(1.0, [params.top_p for params in all_params]),
            top_k=_unless(self._vocab_size, top_k),
            generators={
                row: request.generator
                for row, request in enumerate(requests)
                if request.generator is not None
            },
            max_num_logprobs=max((n for n in asked if n is not None), default=None),
            no_penalties=no_penalties,
            prompt_token_ids=None if no_penalties else self._prompts(requests),
            frequency_penalties=frequency,
            presence_penalties=presence,
            repetition_penalties=repetition,
            output_token_ids=[request.outputs for request in requests],
            allowed_token_ids_mask=self._forbidden(all_params),
            bad_words_token_ids={
                row: params.bad_words_token_ids
                for row, params in enumerate(all_params)
                if params.bad_words_token_ids
            },
            logitsprocs=self._processors_for(requests),
        )

    def _processors_for(self, requests: Sequence[RunningRequest]) -> LogitsProcessors:
        """Processors hold one state per row: new ones where the rows are others than last time."""
        update = None
        if [id(request) for request in requests] != [id(request) for request in self._of]:
            self._of = list(requests)
            model_config = self._config.model_config
            self._processors = build_logitsprocs(
                self._config,
                torch.device("cpu"),
                is_pin_memory=False,
                is_pooling_model=False,
                custom_logitsprocs=model_config.logits_processors or (),
            )
            added = [
                (row, request.params, request.tokens[: request.prompt_len], request.outputs)
                for row, request in enumerate(requests)
            ]
            update = BatchUpdate(batch_size=len(requests), removed=[], added=added, moved=[])
        for processor in self._processors.all:
            processor.update_state(update)
        return self._processors

    def _prompts(self, requests: Sequence[RunningRequest]) -> Tensor:
        """[B, longest prompt]; vocab_size stands for padding."""
        prompts = [torch.tensor(request.tokens[: request.prompt_len]) for request in requests]
        return torch.nn.utils.rnn.pad_sequence(
            prompts, batch_first=True, padding_value=self._vocab_size
        )

    def _forbidden(self, all_params: Sequence[SamplingParams]) -> Tensor | None:
        """[B, vocab_size], True: not allowed."""
        if all(params.allowed_token_ids is None for params in all_params):
            return None
        mask = torch.zeros(len(all_params), self._vocab_size, dtype=torch.bool)
        for row, params in enumerate(all_params):
            if params.allowed_token_ids is not None:
                mask[row] = True
                mask[row, params.allowed_token_ids] = False
        return mask


def _num_logprobs(params: SamplingParams, vocab_size: int) -> int | None:
    return vocab_size if params.logprobs == -1 else params.logprobs


def _unless(neutral: float, values: list[Any]) -> Tensor | None:
    return None if all(value == neutral for value in values) else torch.tensor(values)


def _unpack(bits: np.ndarray[Any, Any], size: int) -> Tensor:
    """Bits of int32 words, lowest first, as bool [size]."""
    flags = np.unpackbits(bits.view(np.uint8), bitorder="little")[:size]
    return torch.from_numpy(flags).bool()
