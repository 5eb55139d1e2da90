"""The weights of Medusa heads, in a file beside those of the model or in a folder of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nxdi.errors import WeightError
from nxdi.runtime.checkpoint import listed, read_file

# NxDI's name, and those of published heads.
_FILES = (
    "medusa_heads.safetensors",
    "medusa_heads.pt",
    "medusa_lm_head.safetensors",
    "medusa_lm_head.pt",
)
# In a folder of their own there is no model that these could belong to.
_ALONE = (*_FILES, "model.safetensors", "model.pt", "pytorch_model.bin")
# `{head}.{layer}.linear.weight`, also below a module or with NxDI's `medusa_head_{head}`.
_NAME = re.compile(r"(?:medusa_heads?[._])?(\d+\.\d+\.(?:linear\.)?(?:weight|bias))")
# vLLM's names of the same.
_BLOCK = re.compile(r"(?:medusa_heads\.)?blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)")
_LM_HEAD = re.compile(r"(?:medusa_heads\.)?lm_heads\.(\d+)\.weight")
_TOKEN_MAP = "token_map"  # vLLM: of heads that know a part of the vocabulary


def find_heads(model_path: Path, heads_path: str | None = None) -> Path:
    """The file with the weights of a model's heads, beside its own or in the folder `heads_path`.

    Raises: WeightError if there is none.
    """
    folder, names = (model_path, _FILES) if heads_path is None else (Path(heads_path), _ALONE)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightError(
        f"{folder} has no weights of Medusa heads: it holds none of {', '.join(names)}; put the "
        "file there, name their folder as medusa_heads_path, or set is_medusa=False"
    )


def count_heads(file: Path) -> int:
    """How many heads a file has the weights of. Raises: WeightError as `read_heads`."""
    return _count(_named(file, num_blocks=1))


def read_heads(file: Path, num_heads: int, num_blocks: int) -> dict[str, Tensor]:
    """The weights of the first `num_heads` heads, named `{head}.{layer}.linear.weight` and so on.

    num_blocks: of each head. Linear layers have a bias of zeros in a file without any.
    Raises: WeightError for a file that cannot be read, has tensors of other names or too few heads.
    """
    found = _named(file, num_blocks)
    if (in_file := _count(found)) < num_heads:
        raise WeightError(
            f"{file} has {in_file} heads, and num_medusa_heads={num_heads} (vLLM's "
            f"num_speculative_tokens) are asked for; ask for {in_file} or fewer"
        )
    heads = {name: tensor for name, tensor in found.items() if _head_of(name) < num_heads}
    return {**_biases(heads), **heads}


def _named(file: Path, num_blocks: int) -> dict[str, Tensor]:
    """All tensors of a file under our names."""
    stored = read_file(file)
    if _TOKEN_MAP in stored:
        raise WeightError(
            f"{file} has a {_TOKEN_MAP}: its heads know a part of the vocabulary only, which is "
            "not supported; take heads of the whole one"
        )
    names = {name: _own_name(name, num_blocks) for name in stored}
    if unknown := [name for name, own in names.items() if own is None]:
        raise WeightError(
            f"{file} has tensors that no Medusa head has: {listed(unknown)}; they are named "
            "{head}.{layer}.linear.weight, {head}.{layer}.linear.bias and {head}.{layer}.weight, "
            "or as vLLM names them"
        )
    return {own: stored[name] for name, own in names.items() if own is not None}


def _own_name(name: str, num_blocks: int) -> str | None:
    if match := _NAME.fullmatch(name):
        return match[1]
    if match := _BLOCK.fullmatch(name):
        return f"{match[1]}.{match[2]}.linear.{match[3]}"
    if match := _LM_HEAD.fullmatch(name):
        return f"{match[1]}.{num_blocks}.weight"
    return None


def _count(heads: Mapping[str, Tensor]) -> int:
    return 1 + max((_head_of(name) for name in heads), default=-1)


def _head_of(name: str) -> int:
    return int(name.partition(".")[0])


def _biases(heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros for every linear layer, unless some layer has a bias."""
    if any(name.endswith(".bias") for name in heads):
        return {}
    return {
        name.removesuffix("weight") + "bias": tensor.new_zeros(tensor.shape[:1])
        for name, tensor in heads.items()
        if name.endswith(".linear.weight")
    }
