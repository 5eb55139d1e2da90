"""The next token of each request of a batch: sampled by the graph, or on the host from its logits.

A random number depends on the seed of the request and the position of the token only, so neither
the batch nor a preemption changes a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.errors import UnsupportedError
from nxdi.generation.requests import Logprobs, RequestOptions
from nxdi.graph.sampling_inputs import uniform_for
from nxdi.models.causal_lm import CausalLMOutput
from nxdi.modules.sampling import DynamicSampler

_REMEDY = "compile with output_logits=True, or with on_device_sampling_config=None"


class Sampled(Protocol):
    """A row of tokens, and how the next ones are chosen."""

    @property
    def tokens(self) -> list[int]: ...

    @property
    def seed(self) -> int: ...

    @property
    def sampling_params(self) -> tuple[float, float, float]:
        """(top_k, top_p, temperature) as the sampler takes them; top_k 1 means greedy."""
        ...


class TokenChoice(Protocol):
    """Where tokens are chosen; `inputs` are what it adds to a call of the model."""

    def inputs(self, requests: Sequence[Sampled]) -> dict[str, Any]: ...

    def token(
        self, request: Sampled, output: CausalLMOutput, row: int, column: int = 0, ahead: int = 0
    ) -> int:
        """The next token; of a verify step, that after column number `column`.

        ahead: how many tokens of the request come after its last one, up to that column.
        """
        ...


class GraphChoice:
    """The graph has chosen."""

    def __init__(self, samples: bool) -> None:
        self._samples = samples

    def inputs(self, requests: Sequence[Sampled]) -> dict[str, Any]:
        if not self._samples:
            return {}
        params = [request.sampling_params for request in requests]
        return {
            "sampling_params": torch.tensor(params, dtype=torch.float32),
            "seeds": [request.seed for request in requests],
        }

    def token(
        self, request: Sampled, output: CausalLMOutput, row: int, column: int = 0, ahead: int = 0
    ) -> int:
        assert output.tokens is not None
        return int(output.tokens[row].reshape(-1)[column])


class HostChoice:
    """The sampler that graphs use, run on the host."""

    def inputs(self, requests: Sequence[Sampled]) -> dict[str, Any]:
        return {}

    def token(
        self, request: Sampled, output: CausalLMOutput, row: int, column: int = 0, ahead: int = 0
    ) -> int:
        assert output.logits is not None
        place = len(request.tokens) - 1 + ahead
        logits = output.logits[row, column : column + 1]
        return sample_row(logits, request.sampling_params, request.seed, place)


def sample_row(logits: Tensor, params: tuple[float, float, float], seed: int, position: int) -> int:
    """The token that a graph with these logits [1, vocab_size] would choose.

    params: (top_k, top_p, temperature); top_k 1 means greedy. position: of the token before.
    """
    if params[0] == 1:
        return int(logits.argmax())
    uniform = uniform_for([seed], torch.tensor([position]))
    return int(DynamicSampler()(logits, torch.tensor([params]), uniform))


def make_token_choice(config: NeuronConfig) -> TokenChoice:
    """The graph where it can sample or has no logits to sample from, else the host."""
    on_device = config.on_device_sampling_config
    if on_device is None:
        return HostChoice()
    samples = on_device.do_sample or on_device.dynamic
    return GraphChoice(samples) if samples or not config.output_logits else HostChoice()


def check_can_choose(config: NeuronConfig, options: RequestOptions) -> None:
    """Raises: UnsupportedError for what needs logits where the graphs return none."""
    on_device = config.on_device_sampling_config
    if on_device is None or config.output_logits:
        return
    if options.logprobs is not None:
        raise UnsupportedError(
            f"logprobs={options.logprobs} needs logits, and the graphs return tokens only; "
            f"{_REMEDY}"
        )
    if options.do_sample and not (on_device.do_sample or on_device.dynamic):
        raise UnsupportedError(
            "do_sample=True, but the graphs were compiled greedy and return tokens only; "
            f"{_REMEDY}, or with OnDeviceSamplingConfig(dynamic=True)"
        )


def logprobs_of(logits: Tensor, token: int, num_top: int) -> Logprobs:
    """What to report of one token; logits [1, vocab_size]."""
    values = torch.log_softmax(logits[0].float(), dim=-1)
    top = values.topk(min(num_top, len(values)))
    likeliest = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Logprobs(float(values[token]), likeliest)
