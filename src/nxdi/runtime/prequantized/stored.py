"""A checkpoint with quantized weights, as two: the weights, and their scales by the same names.

Both then go the way of any checkpoint: what renames, stacks or splits weights does the same to
scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nxdi.errors import WeightError

_QUANTIZED = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class StoredFormat:
    """How one program stores quantized weights.

    keywords: of NeuronConfig, for the same in memory; not asked of the user.
    suffix: what the name of a quantized weight has beyond that of a plain one.
    dtype: what it is stored in.
    scale_names: where its scales may be, from the plain name.
    unpack: (plain name, stored, scale) -> both as they are kept in memory; it checks their shapes.
    is_declared: whether the folder says that the module with this name is quantized.
    companions: suffixes of further tensors of a quantized weight, which nothing here needs.
    """

    keywords: Mapping[str, Any]
    suffix: str
    dtype: torch.dtype
    scale_names: Callable[[str], tuple[str, ...]]
    unpack: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
    is_declared: Callable[[str], bool] = lambda module: True
    companions: tuple[str, ...] = ()

    def split(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(all weights, the scales of quantized ones), both by the names of plain weights.

        Raises: WeightError for a weight without scales or of another format than is declared.
        """
        weights, scales = dict(tensors), {}
        for stored in [name for name, tensor in tensors.items() if self._is_ours(name, tensor)]:
            name = stored.removesuffix(self.suffix) if self.suffix else stored
            self._check(name, tensors[stored])
            found = [scale for scale in self.scale_names(name) if scale in tensors]
            if not found:
                raise WeightError(
                    f"{stored} has no scales: the checkpoint has none of "
                    f"{', '.join(self.scale_names(name))}; fetch it again"
                )
            for used in (stored, found[0], *(name + suffix for suffix in self.companions)):
                weights.pop(used, None)
            weights[name], scales[name] = self.unpack(name, tensors[stored], tensors[found[0]])
        return weights, scales

    def _is_ours(self, name: str, tensor: Tensor) -> bool:
        return name.endswith(self.suffix) if self.suffix else tensor.dtype in _QUANTIZED

    def _check(self, name: str, tensor: Tensor) -> None:
        if tensor.dtype is not self.dtype:
            raise WeightError(
                f"{name} is stored as {tensor.dtype}, but quantization_config says {self.dtype}; "
                "use the config.json that came with this checkpoint"
            )
        if not self.is_declared(name.removesuffix(".weight")):
            raise WeightError(
                f"{name} is quantized, but quantization_config says that it is not; use the "
                "config.json that came with this checkpoint"
            )


def check_shape(name: str, found: Tensor, *wanted: tuple[int, ...]) -> None:
    """Raise WeightError unless the scales of a weight have one of the shapes that are wanted."""
    if tuple(found.shape) not in wanted:
        raise WeightError(
            f"the scales of {name} have shape {tuple(found.shape)}, and by quantization_config it "
            f"must be {' or '.join(map(str, wanted))}; use the config.json that came with this "
            "checkpoint"
        )


def by_row(name: str, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Scales of rows, or one for all, which every row then has: [N, 1]."""
    rows = weight.shape[:-1]
    check_shape(name, scale, (), (1,), (1,) * weight.dim(), (*rows,), (*rows, 1))
    return weight, scale.reshape(-1, 1).expand(rows.numel(), 1).reshape(*rows, 1)


def by_block(rows: int, columns: int) -> Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Scales of blocks with `rows` output and `columns` input features."""

    def unpack(name: str, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        *experts, num_rows, num_columns = weight.shape
        wanted = (*experts, -(-num_rows // rows), -(-num_columns // columns))
        check_shape(name, scale, wanted)
        return weight, scale

    return unpack
