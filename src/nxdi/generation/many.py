"""generate() for more prompts than the graphs have rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig

from nxdi.config import NeuronConfig
from nxdi.errors import BucketError
from nxdi.generation.batcher import ContinuousBatcher
from nxdi.generation.requests import RequestOptions
from nxdi.generation.speculation.proposals import Proposer
from nxdi.models.causal_lm import NeuronBaseForCausalLM

# What a request of the batcher has options for.
_PROCESSORS = {"TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"}
_CRITERIA = {"MaxLengthCriteria", "EosTokenCriteria"}


def check_many(
    config: NeuronConfig,
    num_rows: int,
    asked: Sequence[object],
    generation_config: GenerationConfig,
) -> None:
    """Refuse what takes all prompts in one batch.

    asked: transformers' logits processors and stopping criteria.
    Raises: BucketError naming them.
    """
    others = sorted({type(item).__name__ for item in asked} - _PROCESSORS - _CRITERIA)
    if generation_config.return_dict_in_generate:
        others.append("return_dict_in_generate")
    if others:
        raise BucketError(
            f"{num_rows} prompts do not fit batch_size={config.tkg_batch_size}, and with "
            f"{', '.join(others)} they cannot take turns; pass fewer at a time, or raise "
            "batch_size and compile again"
        )


def generate_many(
    model: NeuronBaseForCausalLM,
    input_ids: Tensor,
    mask: Tensor,
    generation_config: GenerationConfig,
    seeds: Sequence[int] | None,
    proposer: Proposer | None,
) -> Tensor:
    """Token ids [B, prompt + new], finished rows padded; each prompt gets what it would get alone.

    Shapes: input_ids, mask [B, T], padding on either side; seeds: one per row.
    """
    width = input_ids.shape[1]
    batcher = ContinuousBatcher(model, generation_config=generation_config, proposer=proposer)
    num_new = int(generation_config.max_length) - width
    sampling = {}
    if generation_config.do_sample:
        names = ("temperature", "top_k", "top_p")
        given = {name: getattr(generation_config, name) for name in names}
        sampling = {name: value for name, value in given.items() if value is not None}
    ids = [
        batcher.add(
            row[is_real],
            RequestOptions(
                max_new_tokens=num_new,
                do_sample=bool(generation_config.do_sample),
                seed=None if seeds is None else seeds[index],
                **sampling,
            ),
        )
        for index, (row, is_real) in enumerate(zip(input_ids, mask.bool(), strict=True))
    ]
    done = batcher.run()
    rows = [done[request].tokens for request in ids]
    pad = generation_config._pad_token_tensor
    fill = 0 if pad is None else int(pad)
    new = torch.full((len(rows), max(map(len, rows))), fill, dtype=input_ids.dtype)
    for index, tokens in enumerate(rows):
        new[index, : len(tokens)] = torch.tensor(tokens)
    return torch.cat([input_ids, new], dim=1)
