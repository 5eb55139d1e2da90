"""ContinuousBatcher: requests that come and go at any time share the steps of one model."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from nxdi.errors import ConfigError, ShapeError
from nxdi.generation.capacity import make_blocks, sequence_limits, step_limits
from nxdi.generation.hf_adapter import HuggingFaceGenerationAdapter
from nxdi.generation.requests import Completion, Output, Request, RequestOptions
from nxdi.generation.scheduler import Scheduler
from nxdi.generation.speculation.engine import SpeculativeEngine
from nxdi.generation.speculation.own import proposer_of
from nxdi.generation.speculation.proposals import Proposer
from nxdi.generation.speculation.step import Speculation
from nxdi.generation.steps import Engine, make_steps
from nxdi.generation.streaming import TextStream
from nxdi.generation.token_choice import check_can_choose, make_token_choice
from nxdi.graph.rows import check_tokens
from nxdi.models.causal_lm import NeuronBaseForCausalLM


class ContinuousBatcher:
    """Runs any number of requests over a loaded model, as many at once as its cache holds.

    Each request has its own options and gets the tokens it would get alone. Long prompts are
    computed in chunks between the steps of running requests, if the model has graphs for that.
    `add` and `cancel` may be called at any time, also while a step runs in another thread.

    tokenizer: for prompts and outputs that are text, and for stop strings.
    max_step_tokens: new tokens per step; it bounds how long prompts delay running requests
    (default: one token per row, and one chunk).
    generation_config: names the end-of-sequence tokens (default: the model's own).
    proposer: a PromptLookup, DraftModel, EagleHead or MedusaHeads of nxdi.generation.speculation;
    requests then get the same tokens in fewer steps. It needs a model compiled with
    speculation_length. A model with enable_fused_speculation or is_medusa proposes by itself.
    """

    def __init__(
        self,
        model: NeuronBaseForCausalLM,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_step_tokens: int | None = None,
        generation_config: GenerationConfig | None = None,
        proposer: Proposer | None = None,
    ) -> None:
        if generation_config is None:
            generation_config = HuggingFaceGenerationAdapter(model).generation_config
        self.model, self.tokenizer = model, tokenizer
        self._eos_token_ids = _as_set(generation_config.eos_token_id)
        limits, self._blocks = step_limits(model, max_step_tokens), make_blocks(model)
        self._lengths = sequence_limits(model, self._blocks, limits)
        self._scheduler = Scheduler(self._blocks, limits)
        choice = make_token_choice(model.neuron_config)
        proposer = proposer_of(model, proposer)
        self.speculation = None if proposer is None else Speculation(model, proposer)
        engine = (
            Engine(model, self._scheduler, choice)
            if self.speculation is None
            else SpeculativeEngine(self.speculation, self._scheduler, choice)
        )
        self._steps = make_steps(model.neuron_config, engine, self._receive)
        self._ids = count()
        self._requests: dict[int, Request] = {}  # until their last output is read
        # What came in since the last step began.
        self._added: deque[Request] = deque()
        self._cancelled: deque[Request] = deque()
        self._one_step = threading.Lock()
        self._async_step: asyncio.Future[None] | None = None

    @property
    def num_requests(self) -> int:
        """Requests that run, wait, or have outputs that nobody has read."""
        return len(self._requests)

    def add(
        self, prompt: str | Sequence[int] | Tensor, options: RequestOptions | None = None
    ) -> int:
        """Queue a request: text (encoded as the tokenizer does by default), or one row of tokens.

        Returns: its id.
        Raises: BucketError if it can never fit; ShapeError for bad token ids; UnsupportedError for
        options that the compiled graphs cannot honour. Other requests do not notice.
        """
        options = RequestOptions() if options is None else options
        tokens = self._tokens(prompt)
        max_new_tokens = self._lengths.num_new(len(tokens), options.max_new_tokens)
        check_can_choose(self.model.neuron_config, options)
        text = None
        if self.tokenizer is not None:
            text = TextStream(self.tokenizer, options.stop_strings)
        elif options.stop_strings:
            raise ConfigError("stop strings need text; give ContinuousBatcher a tokenizer")
        eos_token_ids = frozenset[int]() if options.ignore_eos else self._eos_token_ids
        request = Request(
            next(self._ids),
            tokens,
            options,
            max_new_tokens=max_new_tokens,
            seed=int(torch.randint(2**63 - 1, ())) if options.seed is None else options.seed,
            stop_token_ids=eos_token_ids | set(options.stop_token_ids),
            text=text,
        )
        self._requests[request.id] = request
        self._added.append(request)
        return request.id

    def cancel(self, request_id: int) -> None:
        """End a request: it has no further outputs, and the next step frees what it holds.

        Raises: ConfigError if it is not there, or no longer.
        """
        request = self._find(request_id)
        del self._requests[request_id]
        request.unread.clear()
        self._cancelled.append(request)

    def step(self) -> list[Output]:
        """Run the model for all requests that can run.

        Returns: the outputs that nobody has read yet, oldest request first. Each is handed out
        once: here, or to the one who reads `stream`.
        """
        self._advance()
        return [output for request in [*self._requests.values()] for output in self._read(request)]

    def run(self) -> dict[int, Completion]:
        """Step until no request is left.

        Returns: all that each of them has generated, by id.
        """
        requests = dict(self._requests)
        while self.num_requests:
            self.step()
        return {
            request_id: request.completion()
            for request_id, request in requests.items()
            if request.finish_reason is not None  # not cancelled meanwhile
        }

    def stream(self, request_id: int) -> RequestStream:
        """The outputs of one request as they come, to iterate over with `for` or `async for`.

        Iterating runs steps, for all requests; with `async for`, in a thread beside the event loop.
        Leaving the loop does not cancel the request.
        Raises: ConfigError if the request is not there, or no longer.
        """
        return RequestStream(self, self._find(request_id))

    def _find(self, request_id: int) -> Request:
        if request_id not in self._requests:
            raise ConfigError(
                f"there is no request {request_id}: it was never added, is cancelled, or its last "
                "output has been read"
            )
        return self._requests[request_id]

    def _tokens(self, prompt: str | Sequence[int] | Tensor) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ConfigError("a prompt of text needs a tokenizer; give ContinuousBatcher one")
            prompt = self.tokenizer.encode(prompt)
        try:
            row = torch.as_tensor(prompt)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ShapeError(f"a prompt is one text or one row of token ids: {error}") from error
        if row.dim() == 2 and len(row) == 1:
            row = row[0]
        if row.dim() != 1 or not len(row) or row.is_floating_point():
            raise ShapeError(
                f"a prompt is one row of at least one integer token id, not {row.dtype} of shape "
                f"{tuple(row.shape)}"
            )
        check_tokens(row.unsqueeze(0), self.model.config.vocab_size)
        if self.model.neuron_config.allow_input_truncation:
            row = row[: self._lengths.num_prompt]
        tokens: list[int] = row.tolist()
        return tokens

    def _read(self, request: Request) -> Iterator[Output]:
        while request.unread:
            output = request.unread.popleft()
            if output.finish_reason is not None:
                self._requests.pop(request.id, None)
            yield output

    def _advance(self) -> None:
        """One step. An error of the model leaves every request as it was before the failed call."""
        with self._one_step:
            self._steps.advance()

    def _receive(self) -> None:
        """Let in and out who came and went since the last step; no step runs meanwhile."""
        cancelled = [*_drain(self._cancelled)]  # each of them was added before
        for request in _drain(self._added):
            self._scheduler.add(request)
        for request in cancelled:
            if request.finish_reason is None:
                self._scheduler.remove(request)

    async def _advance_async(self) -> None:
        """Wait for the end of a step: the one that runs, or else a new one."""
        if self._async_step is None or self._async_step.done():
            self._async_step = asyncio.ensure_future(asyncio.to_thread(self._advance))
        await asyncio.shield(self._async_step)


class RequestStream:
    """The outputs of one request as they come."""

    def __init__(self, batcher: ContinuousBatcher, request: Request) -> None:
        self._batcher, self._request = batcher, request

    @property
    def _is_open(self) -> bool:
        return self._request.id in self._batcher._requests

    def __iter__(self) -> Iterator[Output]:
        while self._is_open:
            yield from self._batcher._read(self._request)
            if self._is_open:
                self._batcher._advance()

    async def __aiter__(self) -> AsyncIterator[Output]:
        while self._is_open:
            for output in self._batcher._read(self._request):
                yield output
            if self._is_open:
                await self._batcher._advance_async()


def _drain(queue: deque[Request]) -> Iterator[Request]:
    while queue:
        yield queue.popleft()


def _as_set(tokens: int | Sequence[int] | None) -> frozenset[int]:
    if tokens is None:
        return frozenset()
    return frozenset([tokens] if isinstance(tokens, int) else tokens)
