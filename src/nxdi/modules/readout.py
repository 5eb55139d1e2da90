"""After which tokens of a step there are logits: the last one of each row, or every one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.types import Phase


class Readout(Protocol):
    """Which activations go through norm, lm_head and sampler, always as rows of one token each.

    Legend: B rows, S tokens per row, R rows for the head.
    """

    def hidden(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """[B, S, hidden_size] -> [R, 1, hidden_size]."""
        ...

    def sampling(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """sampling_params [R, 3] and uniform [R] of a step, where it has them."""
        ...

    def output(self, value: Tensor) -> Tensor:
        """What the graph returns of a result [R, ...] of the head."""
        ...


@dataclass(frozen=True)
class LastToken:
    """Each row's last real token. R = B."""

    def hidden(self, x: Tensor, position_ids: Tensor) -> Tensor:
        last = position_ids.argmax(dim=1)
        return torch.gather(x, 1, last[:, None, None].expand(-1, 1, x.shape[-1]))

    def sampling(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        return inputs.get("sampling_params"), inputs.get("uniform")

    def output(self, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class EveryToken:
    """All `num_tokens` tokens of each row, padding too. R = B * num_tokens."""

    num_tokens: int

    def hidden(self, x: Tensor, position_ids: Tensor) -> Tensor:
        return x.flatten(0, 1).unsqueeze(1)

    def sampling(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        if "uniform" not in inputs:
            return None, None
        params = inputs["sampling_params"].repeat_interleave(self.num_tokens, dim=0)
        return params, inputs["uniform"].flatten()

    def output(self, value: Tensor) -> Tensor:
        """[B, num_tokens, ...]."""
        return value.view(-1, self.num_tokens, *value.shape[1:])


def make_readout(config: NeuronConfig) -> Readout:
    """What the graphs of the phase that `config` is for read out."""
    return EveryToken(config.num_verified) if config.phase is Phase.VERIFY else LastToken()
