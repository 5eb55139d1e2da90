"""NeuronBaseForCausalLM: a compiled decoder as its users see it, one step at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.errors import BucketError, ConfigError, ShapeError
from nxdi.graph.padding import StepBatch
from nxdi.graph.rows import check_rows, check_tokens, packed_left, phase_of, row_positions
from nxdi.graph.sampling_inputs import (
    check_sampling_params,
    is_greedy,
    prepare_sampling_params,
    uniform_for,
)
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.modules.rope import longrope_switch
from nxdi.types import Phase


@dataclass
class CausalLMOutput:
    """Result of one step, rows in the caller's order.

    Shapes: logits float32 [B, 1, vocab_size] of each row's last token, tokens int32 [B]; None if
    not compiled in.
    """

    logits: Tensor | None = None
    tokens: Tensor | None = None

    @property
    def hidden_states(self) -> Tensor | None:
        """NxDI returns sampled tokens under this name."""
        return self.tokens

    def __iter__(self) -> Iterator[Tensor]:
        return iter([x for x in (self.logits, self.tokens) if x is not None])


class NeuronBaseForCausalLM(NeuronApplicationBase):
    """A decoder with its graphs: `compile`, `load`, then call it with token ids.

    A subclass names its `_model_cls` and `_config_cls`.
    """

    def __call__(
        self, *args: Tensor | None, **kwargs: Tensor | Sequence[int] | None
    ) -> CausalLMOutput:
        return self.forward(*args, **kwargs)  # type: ignore[arg-type]  # forward checks

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        seq_ids: Tensor | None = None,
        sampling_params: Tensor | None = None,
        seeds: Sequence[int] | None = None,
    ) -> CausalLMOutput:
        """One step: a prefill if the rows start at position 0, else a decode of one token per row.

        Shapes: input_ids, position_ids int [B, S]; attention_mask [B, S], or [B, T >= S] when it
        also covers earlier tokens; padding on either side; seq_ids [B]: the cache row of each batch
        row (default 0 .. B-1); sampling_params float [B, 3] = (top_k, top_p, temperature); seeds:
        one per row (default: torch's own generator).
        Raises: ShapeError for inputs that do not fit together, and for a decode of a row at
        `prefill_again_at`; BucketError for rows or lengths
        beyond the largest graph.
        """
        positions = row_positions(input_ids, attention_mask, position_ids)
        check_tokens(torch.where(positions < 0, 0, input_ids), self.config.vocab_size)
        ids, positions = packed_left(input_ids, positions)
        phase = phase_of(positions)
        if phase is Phase.PREFILL:
            ids, positions = self._fit_prompt(ids, positions)
        else:
            self._check_continues(positions)
        num_rows = ids.shape[0]
        rows = self._rows(num_rows, seq_ids)
        extras = self._sampling_inputs(positions.amax(dim=1), sampling_params, seeds)
        outputs = self.runner.step(StepBatch(phase, ids, positions, rows, extras))
        logits = outputs.get("logits")
        return CausalLMOutput(
            None if logits is None else logits.unsqueeze(1), outputs.get("tokens")
        )

    @property
    def prefill_again_at(self) -> int | None:
        """The position whose token needs the whole sequence, with it, prefilled anew; None: none.

        LongRoPE turns all tokens of a sequence that grows past this position otherwise.
        """
        return longrope_switch(self.config)

    def reset(self) -> None:
        """Forget all sequences."""
        self.runner.reset()

    def _check_continues(self, positions: Tensor) -> None:
        switch = self.prefill_again_at
        if switch is not None and bool((positions == switch).any()):
            raise ShapeError(
                f"position {switch} cannot be decoded: from there on LongRoPE turns the tokens "
                f"before it otherwise; pass all {switch + 1} tokens of the sequence from position 0"
            )

    def _fit_prompt(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        longest = self.neuron_config.max_context_length
        if ids.shape[1] <= longest:
            return ids, positions
        if not self.neuron_config.allow_input_truncation:
            raise BucketError(
                f"prompt of {ids.shape[1]} tokens is longer than max_context_length={longest}; "
                "shorten it, raise max_context_length and compile again, or set "
                "allow_input_truncation=True to keep its first tokens"
            )
        return ids[:, :longest], positions[:, :longest]

    def _rows(self, num_rows: int, seq_ids: Tensor | None) -> Tensor:
        max_rows = self.neuron_config.max_batch_size
        if num_rows > max_rows:
            raise BucketError(
                f"{num_rows} rows do not fit batch_size={max_rows}; raise batch_size and compile "
                "again"
            )
        rows = torch.arange(num_rows, dtype=torch.int32) if seq_ids is None else seq_ids.flatten()
        check_rows(rows, num_rows, max_rows)
        return rows

    def _sampling_inputs(
        self, positions: Tensor, params: Tensor | None, seeds: Sequence[int] | None
    ) -> dict[str, Tensor]:
        """The declared sampling inputs of this step.

        positions [B]: where each row's last token stands.
        """
        config, num_rows = self.neuron_config.on_device_sampling_config, positions.shape[0]
        if params is not None:
            check_sampling_params(params, num_rows)
        samples = config is not None and (config.do_sample or config.dynamic)
        if not samples:
            if params is not None and not is_greedy(params):
                raise ConfigError(
                    "the graphs were compiled without sampling, so sampling_params other than "
                    "greedy (top_k=1) cannot be honoured; compile with "
                    "on_device_sampling_config=OnDeviceSamplingConfig(dynamic=True)"
                )
            return {}
        assert config is not None
        if params is None:
            params = prepare_sampling_params(
                num_rows, config.top_k, config.top_p, config.temperature
            )
        if seeds is not None and len(seeds) != num_rows:
            raise ConfigError(f"{len(seeds)} seeds for {num_rows} rows; give one per row")
        if config.deterministic:
            uniform = torch.full((num_rows,), 0.5)
        elif seeds is not None:
            uniform = uniform_for(seeds, positions)
        else:
            uniform = torch.rand(num_rows)
        return {"sampling_params": params.float(), "uniform": uniform}
