"""How well a model predicts a text, from the logits of the graphs that serve it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from nxdi.errors import ShapeError
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.runtime.progress import Progress


def perplexity(
    model: NeuronBaseForCausalLM, tokens: Sequence[int], progress: bool | None = None
) -> float:
    """exp of the mean negative log-likelihood of a text's tokens.

    The text is cut into `batch_size` parts, which are read side by side, each from its own start;
    the first token of each is not predicted. Parts longer than `seq_len` are cut again.
    Raises: ShapeError for a text too short for that.
    """
    rows, longest = model.neuron_config.tkg_batch_size, model.neuron_config.max_length
    length = min(len(tokens) // rows, longest)
    if length < 2:
        raise ShapeError(f"{len(tokens)} tokens are too few for {rows} rows of at least 2")
    num_rounds = len(tokens) // (rows * length)
    text = torch.tensor(tokens[: num_rounds * rows * length]).view(num_rounds, rows, length)
    total = 0.0
    with Progress("perplexity", progress) as bar:
        for turn, part in enumerate(text):
            for place in range(length - 1):
                positions = torch.full((rows, 1), place, dtype=torch.int32)
                output = model(part[:, place : place + 1].int(), position_ids=positions)
                assert output.logits is not None
                scores = output.logits[:, 0].log_softmax(-1)
                total -= float(scores.gather(1, part[:, place + 1 : place + 2]).sum())
                bar.report(turn * length + place + 1, num_rounds * length, "tokens of each row")
    return math.exp(total / (num_rounds * rows * (length - 1)))
