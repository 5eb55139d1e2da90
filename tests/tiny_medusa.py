"""Medusa heads for tiny models: fitted to some sequences, so that they are often right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

# Chains, and trees of three shapes: wide, deep, and one whose likeliest chain is short.
TREES: dict[str, list[list[int]] | None] = {
    "chain": None,
    "wide": [[0], [1], [2], [0, 0]],
    "deep": [[0], [1], [0, 0], [1, 0], [1, 0, 0]],
    "twigs": [[0], [1], [0, 0], [0, 1], [1, 0], [1, 1], [1, 1, 0]],
}


def heads_options(tree: str) -> dict[str, object]:
    return {
        "is_medusa": True,
        "num_medusa_heads": 3,
        "medusa_speculation_length": 8,
        "medusa_tree": TREES[tree],
    }


@torch.no_grad()
def fitted_heads(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], num_heads: int = 3
) -> dict[str, Tensor]:
    """Heads as published: `{head}.{layer}...`.

    Least squares finds the token that follows, and makes it the second choice at every third place:
    so the right path leaves the first chain now and then.
    """
    size, vocab_size = model.config.hidden_size, model.config.vocab_size
    hidden, state = [], {}
    for tokens in sequences:
        out = model.model(torch.tensor([tokens])).last_hidden_state[0]
        hidden.append(out)
    for head in range(num_heads):
        ahead = head + 2
        x = torch.cat([of_one[:-ahead] for of_one in hidden])
        right = torch.cat([torch.tensor(tokens[ahead:]) for tokens in sequences])
        places = torch.cat([torch.arange(len(tokens) - ahead) for tokens in sequences])
        wanted = F.one_hot(right, vocab_size).float()
        other = F.one_hot((right + 1) % vocab_size, vocab_size).float()
        wanted += 2 * other * (places % 3 == 1).unsqueeze(1)
        state[f"{head}.0.linear.weight"] = torch.zeros(size, size)
        state[f"{head}.0.linear.bias"] = torch.zeros(size)
        state[f"{head}.1.weight"] = torch.linalg.lstsq(x, wanted).solution.T.contiguous()
    return state


def vllm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of heads with one residual block each, as vLLM names them."""
    names = {"0.linear.weight": "layers.0.weight", "0.linear.bias": "layers.0.bias"}
    renamed = {}
    for name, tensor in state.items():
        head, _, rest = name.partition(".")
        is_lm_head = rest == "1.weight"
        new = f"lm_heads.{head}.weight" if is_lm_head else f"blocks.{head}.{names[rest]}"
        renamed[new] = tensor
    return renamed


def save_heads(folder: Path, state: dict[str, Tensor], name: str = "medusa_heads.pt") -> None:
    torch.save(state, folder / name)
