"""How the next token of each row is chosen from a step's outputs: in the graph or on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nxdi.config import NeuronConfig
from nxdi.errors import UnsupportedError
from nxdi.graph.sampling_inputs import prepare_sampling_params
from nxdi.models.causal_lm import CausalLMOutput

# What the sampler in the graph computes itself from sampling_params, in this order.
_IN_GRAPH: dict[type, str] = {
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
}
_REMEDY = (
    "compile with on_device_sampling_config=None, or with output_logits=True, to sample on the host"
)


@dataclass
class Chosen:
    """One token per row [B]; logits and processed scores [B, vocab] where they came to the host."""

    tokens: Tensor
    logits: Tensor | None = None
    scores: Tensor | None = None


class Chooser(Protocol):
    """Chooses next tokens; `inputs` are what it adds to each forward call."""

    inputs: dict[str, Any]

    def choose(self, input_ids: Tensor, output: CausalLMOutput) -> Chosen: ...


class DeviceChooser:
    """The tokens that the graph sampled."""

    def __init__(self, sampling_params: Tensor | None, seeds: Sequence[int] | None) -> None:
        self.inputs = {"sampling_params": sampling_params, "seeds": seeds}

    def choose(self, input_ids: Tensor, output: CausalLMOutput) -> Chosen:
        assert output.tokens is not None
        return Chosen(output.tokens.long())


class HostChooser:
    """transformers' own logits processors, then argmax or a draw from torch's generator."""

    def __init__(self, processors: LogitsProcessorList, do_sample: bool) -> None:
        self.inputs: dict[str, Any] = {}
        self.processors: Any = processors  # its annotations name tensor subclasses
        self.do_sample = do_sample

    def choose(self, input_ids: Tensor, output: CausalLMOutput) -> Chosen:
        assert output.logits is not None
        logits = output.logits[:, -1].float()
        scores = self.processors(input_ids, logits.clone())
        if self.do_sample:
            tokens = torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = torch.argmax(scores, dim=-1)
        return Chosen(tokens, logits, scores)


def make_chooser(
    neuron_config: NeuronConfig,
    generation_config: GenerationConfig,
    processors: LogitsProcessorList,
    num_rows: int,
    *,
    sampling_params: Tensor | None,
    seeds: Sequence[int] | None,
) -> Chooser:
    """On the device where the graph can honour the request, else on the host from its logits.

    Raises: UnsupportedError naming what neither can do.
    """
    on_device = neuron_config.on_device_sampling_config
    do_sample = bool(generation_config.do_sample)
    can_sample = on_device is not None and (on_device.do_sample or on_device.dynamic)
    beyond = _beyond_graph(processors)
    if do_sample and not can_sample:
        beyond.append("do_sample=True (the graph was compiled greedy)")
    if generation_config.return_dict_in_generate and (
        generation_config.output_scores or generation_config.output_logits
    ):
        beyond.append("output_scores or output_logits")
    if on_device is not None and not beyond:
        if can_sample and sampling_params is None:
            sampling_params = _params(processors if do_sample else None, num_rows)
        return DeviceChooser(sampling_params, seeds)
    if on_device is not None and not neuron_config.output_logits:
        raise UnsupportedError(
            f"the graph samples on the device and cannot honour {', '.join(beyond)}; {_REMEDY}"
        )
    if seeds is not None or sampling_params is not None:
        given = "seeds" if seeds is not None else "sampling_params"
        raise UnsupportedError(
            f"{given} belong to sampling in the graph, but this request is sampled on the host; "
            "use torch.manual_seed and GenerationConfig, or compile with "
            "on_device_sampling_config=OnDeviceSamplingConfig(dynamic=True)"
        )
    return HostChooser(processors, do_sample)


def _beyond_graph(processors: LogitsProcessorList) -> list[str]:
    """What the sampler in the graph cannot do: other processors, or its own in another order."""
    beyond = [
        type(p).__name__
        for p in processors
        if type(p) not in _IN_GRAPH or getattr(p, "min_tokens_to_keep", 1) > 1
    ]
    names = [_IN_GRAPH[type(p)] for p in processors if type(p) in _IN_GRAPH]
    if names != [name for name in _IN_GRAPH.values() if name in names]:
        beyond.append(f"the order {', '.join(names)}")
    return beyond


def _params(processors: LogitsProcessorList | None, num_rows: int) -> Tensor:
    """What the processors ask for, as the sampler in the graph takes it; None: greedy."""
    if processors is None:
        return prepare_sampling_params(num_rows, top_k=1)
    given = {_IN_GRAPH[type(p)]: getattr(p, _IN_GRAPH[type(p)]) for p in processors}
    return prepare_sampling_params(num_rows, **{"top_k": 0, **given})
