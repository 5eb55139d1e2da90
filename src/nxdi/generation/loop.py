"""The decode loop: one prefill, then one step per token until every row has stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from nxdi.generation.choosers import Chooser, Chosen
from nxdi.models.causal_lm import NeuronBaseForCausalLM


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
    streamer: Streamer | None = None,
) -> None:
    """Extend `done` until `stopping` holds for every row.

    Shapes: attention_mask [B, T], as `done.input_ids` is at first; padding on either side.
    pad_token_id: what finished rows go on with; None: with what is chosen, like the others.
    """
    unfinished = torch.ones(len(attention_mask), dtype=torch.bool)
    # A prompt that was cut (allow_input_truncation) continues where it was cut.
    lengths = attention_mask.sum(dim=1).clamp(max=model.neuron_config.max_context_length)
    output = model(done.input_ids, attention_mask=attention_mask, **chooser.inputs)
    while True:
        chosen = chooser.choose(done.input_ids, output)
        tokens = (
            chosen.tokens
            if pad_token_id is None
            else torch.where(unfinished, chosen.tokens, pad_token_id)
        )
        done.append(tokens, chosen)
        if streamer is not None:
            streamer.put(tokens.cpu())
        unfinished &= ~stopping(done.input_ids, done.scores)
        if not bool(unfinished.any()):
            break
        output = model(tokens.unsqueeze(1), position_ids=lengths.unsqueeze(1), **chooser.inputs)
        lengths = lengths + 1
    if streamer is not None:
        streamer.end()
