"""The decode loop: one prefill, then one step per token until every row has stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """input_ids [B, prompt + new]; per new token logits and scores [B, vocab] or None."""

    input_ids: Tensor
    logits: list[Tensor | None] = field(default_factory=list)
    scores: list[Tensor | None] = field(default_factory=list)


def decode_loop(
    model: NeuronBaseForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    chooser: Chooser,
    stopping: StoppingCriteriaList,
    pad_token_id: int | None,
    streamer: Streamer | None = None,
) -> Generated:
    """Generate until `stopping` holds for every row; finished rows are filled with `pad_token_id`.

    Shapes: input_ids, attention_mask [B, T], padding on either side.
    """
    done = Generated(input_ids)
    unfinished = torch.ones(input_ids.shape[0], dtype=torch.bool)
    lengths = attention_mask.sum(dim=1)
    output = model(input_ids, attention_mask=attention_mask, **chooser.inputs)
    while True:
        chosen = chooser.choose(done.input_ids, output)
        tokens = (
            chosen.tokens
            if pad_token_id is None
            else torch.where(unfinished, chosen.tokens, pad_token_id)
        )
        _append(done, tokens, chosen)
        if streamer is not None:
            streamer.put(tokens.cpu())
        unfinished &= ~stopping(done.input_ids, done.scores[-1])
        if not bool(unfinished.any()):
            break
        output = model(tokens.unsqueeze(1), position_ids=lengths.unsqueeze(1), **chooser.inputs)
        lengths = lengths + 1
    if streamer is not None:
        streamer.end()
    return done


def _append(done: Generated, tokens: Tensor, chosen: Chosen) -> None:
    done.input_ids = torch.cat([done.input_ids, tokens.unsqueeze(1)], dim=1)
    done.logits.append(chosen.logits)
    done.scores.append(chosen.scores)
