"""The weights of Medusa heads, in a file beside those of the model."""

from __future__ import annotations

import re
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
# `{head}.{layer}.linear.weight`, also below a module or with NxDI's `medusa_head_{head}`.
_NAME = re.compile(r"(?:medusa_heads?[._])?(\d+\.\d+\.(?:linear\.)?(?:weight|bias))")


def find_heads(folder: Path) -> Path:
    """The file with the weights of a model's heads. Raises: WeightError if there is none."""
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightError(
        f"{folder} has no weights of Medusa heads: it holds none of {', '.join(_FILES)}; put the "
        "file there, or set is_medusa=False"
    )


def read_heads(folder: Path) -> dict[str, Tensor]:
    """The weights of a model's heads, named `{head}.{layer}.linear.weight` as published.

    Raises: WeightError for a file that cannot be read, or has tensors of other names.
    """
    file = find_heads(folder)
    found = {name: (_NAME.fullmatch(name), tensor) for name, tensor in read_file(file).items()}
    if unknown := [name for name, (match, _) in found.items() if match is None]:
        raise WeightError(
            f"{file} has tensors that no Medusa head has: {listed(unknown)}; they are named "
            "{head}.{layer}.linear.weight, {head}.{layer}.linear.bias and {head}.{layer}.weight"
        )
    return {match[1]: tensor for match, tensor in found.values() if match is not None}
