"""What the runner keeps of each request that vLLM has scheduled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from nxdi.integrations.vllm.sampling import needs_host

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.outputs import LogprobsTensors


@dataclass
class RunningRequest:
    """A row of tokens, where the cache has it, and how its next token is chosen.

    tokens: prompt and outputs; outputs: the same list object for as long as the request lives,
    which vLLM's logits processors hold on to.
    """

    id: str
    params: SamplingParams
    tokens: list[int]
    prompt_len: int
    table: list[int]
    seed: int
    on_host: bool
    generator: torch.Generator | None = None
    outputs: list[int] = field(default_factory=list)
    prompt_scores: list[LogprobsTensors] = field(default_factory=list)
    is_scored: bool = False  # whether the scores of the whole prompt were handed out

    @classmethod
    def from_vllm(cls, data: NewRequestData, seed: int, always_on_host: bool) -> RunningRequest:
        """seed: for a request that has none."""
        params, prompt = data.sampling_params, data.prompt_token_ids
        assert params is not None  # nothing else passes the platform
        assert prompt is not None
        generator = None
        if params.seed is not None:
            generator = torch.Generator().manual_seed(params.seed)
        return cls(
            data.req_id,
            params,
            list(prompt),
            len(prompt),
            [],
            seed if params.seed is None else params.seed,
            always_on_host or needs_host(params),
            generator,
        )

    def extend(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)
        self.outputs.extend(tokens)

    @property
    def sampling_params(self) -> tuple[float, float, float]:
        """(top_k, top_p, temperature) as nxdi's sampler takes them; top_k 1: greedy."""
        params = self.params
        if self.on_host or params.temperature == 0:
            return 1, 1.0, 1.0
        return max(params.top_k, 0), params.top_p, params.temperature
