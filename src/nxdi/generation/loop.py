"""The decode loop: one prefill, then one step per token until every row has stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import StoppingCriteriaList

from nxdi.generation.ahead import InTurn, Starter
from nxdi.generation.choosers import Chooser, Chosen
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM


class Streamer(Protocol):
    """What transformers' streamers offer."""

    def put(self, value: Tensor) -> None: ...
    def end(self) -> None: ...


@dataclass
class Generated:
    """What has been generated so far.

    Shapes: input_ids [B, prompt + new]; logits and processed scores [B, vocab] of each new token,
    None where they are not to be kept.
    """

    input_ids: Tensor
    logits: tuple[Tensor, ...] | None = None
    scores: tuple[Tensor, ...] | None = None

    def append(self, tokens: Tensor, chosen: Chosen) -> None:
        """Add one token per row [B], and what it was chosen from."""
        self.input_ids = torch.cat([self.input_ids, tokens.unsqueeze(1)], dim=1)
        if self.logits is not None and chosen.logits is not None:
            self.logits += (chosen.logits,)
        if self.scores is not None and chosen.scores is not None:
            self.scores += (chosen.scores,)


def decode_loop(
    model: NeuronBaseForCausalLM,
    done: Generated,
    attention_mask: Tensor,
    *,
    chooser: Chooser,
    stopping: StoppingCriteriaList,
    pad_token_id: int | None,
    starter: Starter,
    streamer: Streamer | None = None,
) -> None:
    """Extend `done` until `stopping` holds for every row.

    Each step is given to `starter` before the streamer and the stopping criteria see the tokens of
    the one before, and dropped if these end the loop. None beyond the length that `stopping` names
    is started ahead.
    Shapes: attention_mask [B, T], as `done.input_ids` is at first; padding on either side.
    pad_token_id: what finished rows go on with; None: with what is chosen, like the others.
    """
    unfinished = torch.ones(len(attention_mask), dtype=torch.bool)
    # A prompt that was cut (allow_input_truncation) continues where it was cut.
    lengths = attention_mask.sum(dim=1).clamp(max=model.neuron_config.longest_prompt)
    step = starter.start(
        partial(model, done.input_ids, attention_mask=attention_mask, **chooser.inputs)
    )
    is_over = False
    while not is_over:
        chosen = chooser.choose(done.input_ids, step.result())
        tokens = (
            chosen.tokens
            if pad_token_id is None
            else torch.where(unfinished, chosen.tokens, pad_token_id)
        )
        done.append(tokens, chosen)
        may_go_on = done.input_ids.shape[1] < (stopping.max_length or 0)
        step = (starter if may_go_on else InTurn()).start(
            partial(_next_output, model, done, attention_mask, lengths, chooser.inputs)
        )
        is_over = True  # also if what follows raises
        try:
            if streamer is not None:
                streamer.put(tokens.cpu())
            unfinished &= ~stopping(done.input_ids, done.scores)
            is_over = not bool(unfinished.any())
        finally:
            if is_over:
                step.drop()
        lengths = lengths + 1
    if streamer is not None:
        streamer.end()


def _next_output(
    model: NeuronBaseForCausalLM,
    done: Generated,
    attention_mask: Tensor,
    lengths: Tensor,
    inputs: Mapping[str, Any],
) -> CausalLMOutput:
    """One step from the last token of each row, which stands at position `lengths` [B].

    Rows at `model.prefill_again_at` are prefilled anew, the others decode.
    """
    switch = model.prefill_again_at
    again = torch.zeros_like(lengths, dtype=torch.bool) if switch is None else lengths == switch
    if not bool(again.any()):
        return model(done.input_ids[:, -1:], position_ids=lengths.unsqueeze(1), **inputs)
    rows, others = again.nonzero().flatten(), (~again).nonzero().flatten()
    num_new = done.input_ids.shape[1] - attention_mask.shape[1]
    is_real = F.pad(attention_mask, (0, num_new), value=1).bool()
    whole = torch.stack([done.input_ids[row][is_real[row]] for row in rows])
    parts = [model(whole, seq_ids=rows, **_of_rows(inputs, rows))]
    if len(others):
        last, places = done.input_ids[others, -1:], lengths[others].unsqueeze(1)
        parts.append(model(last, position_ids=places, seq_ids=others, **_of_rows(inputs, others)))
    order = torch.cat([rows, others]).argsort()
    return CausalLMOutput(
        _joined([part.logits for part in parts], order),
        _joined([part.tokens for part in parts], order),
    )


def _of_rows(inputs: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """The part of per-row inputs that belongs to some rows."""
    return {
        name: value[rows] if isinstance(value, Tensor) else value and [value[i] for i in rows]
        for name, value in inputs.items()
    }


def _joined(parts: Sequence[Tensor | None], order: Tensor) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors)[order] if tensors else None
