"""One request of continuous batching: what was asked, how far it is, and what comes out of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from nxdi.config import OnDeviceSamplingConfig
from nxdi.errors import ConfigError
from nxdi.generation.streaming import TextStream

# stop: an end-of-sequence token, a stop token or a stop string; length: max_new_tokens.
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class RequestOptions:
    """What one request asks for.

    max_new_tokens: None: as many as the compiled lengths allow.
    top_k: the likeliest tokens to sample from; 0: all.
    seed: the tokens follow from it alone, whatever else runs; None: drawn from torch's generator.
    stop: strings that end the text, which is cut before them; they need a tokenizer.
    logprobs: how many of the likeliest tokens to report with each token; 0: only the token itself.
    ignore_eos: do not stop at the model's end-of-sequence tokens.

    Raises: ConfigError for a value out of range, or one that would have no effect.
    """

    max_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: Sequence[int] = ()
    stop: str | Sequence[str] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        # The ranges and types of what the sampler in the graph takes as well.
        OnDeviceSamplingConfig(
            do_sample=self.do_sample,
            top_k=self.top_k,
            top_p=self.top_p,
            temperature=self.temperature,
        )
        if not self.do_sample:
            for f in fields(self):
                value = getattr(self, f.name)
                if f.name in ("temperature", "top_k", "top_p") and value != f.default:
                    raise ConfigError(
                        f"{f.name}={value} has no effect on greedy search; set do_sample=True"
                    )
        _check_integer("max_new_tokens", self.max_new_tokens, 1)
        _check_integer("logprobs", self.logprobs, 0)
        _check_integer("seed", self.seed, None)
        for token in self.stop_token_ids:
            _check_integer("stop_token_ids", token, 0)
        if not all(isinstance(stop, str) and stop for stop in self.stop_strings):
            raise ConfigError(f"stop={self.stop!r} must be one or more strings, none of them empty")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def sampling_params(self) -> tuple[float, float, float]:
        """(top_k, top_p, temperature) as the sampler takes them; top_k 1 means greedy."""
        if not self.do_sample:
            return 1, 1.0, 1.0
        return self.top_k, self.top_p, self.temperature


def _check_integer(name: str, value: object, lowest: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={value!r} must be an integer")
    if lowest is not None and value < lowest:
        raise ConfigError(f"{name}={value} must be at least {lowest}")


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of probabilities before temperature, top_k and top_p."""

    token: float
    top: dict[int, float]  # the likeliest tokens, best first


@dataclass(frozen=True)
class Output:
    """One new token of a request.

    text: what the token adds to the text, as far as it is certain; "" without a tokenizer.
    """

    request_id: int
    token: int
    text: str = ""
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """All that a request generated. The token that stopped it is among the tokens, not the text."""

    tokens: list[int]
    text: str
    logprobs: list[Logprobs]
    finish_reason: FinishReason


class Request:
    """A row of tokens, of which the cache holds the first `num_computed`.

    A prompt that is being computed, a running request and one that lost its blocks differ in
    `num_computed` only. The cache holds the first `num_held` at their own positions: as many, but
    after a step that has verified a tree.
    """

    def __init__(
        self,
        request_id: int,
        prompt: Sequence[int],
        options: RequestOptions,
        *,
        max_new_tokens: int,
        seed: int,
        stop_token_ids: frozenset[int],
        text: TextStream | None,
    ) -> None:
        self.id, self.options, self.seed = request_id, options, seed
        self.tokens, self.prompt_len = list(prompt), len(prompt)
        self.max_len = len(prompt) + max_new_tokens
        self.num_computed = self.num_held = 0
        self.finish_reason: FinishReason | None = None
        self.unread: deque[Output] = deque()
        self._num_published = 0
        self._stop_token_ids, self._text = stop_token_ids, text
        self._logprobs: list[Logprobs] = []

    @property
    def num_pending(self) -> int:
        """Tokens that the cache does not hold yet."""
        return len(self.tokens) - self.num_computed

    @property
    def sampling_params(self) -> tuple[float, float, float]:
        return self.options.sampling_params

    @property
    def is_full(self) -> bool:
        """Whether it has all tokens that it may have."""
        return len(self.tokens) == self.max_len

    def start(self, num_computed: int) -> None:
        """Have a place in the cache, where so many tokens are computed."""
        self.num_computed = self.num_held = num_computed

    def take(self, token: int) -> None:
        """Have one token more, which is to be published."""
        self.tokens.append(token)

    def publish(self, token: int, logprobs: Logprobs | None = None) -> None:
        """Put out the first token that is not yet, and decide whether it ends the request."""
        self._num_published += 1
        if logprobs is not None:
            self._logprobs.append(logprobs)
        text, is_stop = "", token in self._stop_token_ids
        if self._text is not None and not is_stop:
            text = self._text.push(token)
            is_stop = self._text.is_stopped
        if is_stop:
            self.finish_reason = "stop"
        elif self.prompt_len + self._num_published == self.max_len:
            self.finish_reason = "length"
        if self.finish_reason is not None and self._text is not None:
            text += self._text.end()
        self.unread.append(Output(self.id, token, text, logprobs, self.finish_reason))

    def completion(self) -> Completion:
        """What was generated, once it has finished."""
        assert self.finish_reason is not None
        text = "" if self._text is None else self._text.text
        tokens = self.tokens[self.prompt_len : self.prompt_len + self._num_published]
        return Completion(tokens, text, self._logprobs, self.finish_reason)
