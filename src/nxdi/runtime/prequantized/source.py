"""Where the weights of a model are, and what they are stored in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from nxdi.config import InferenceConfig, NeuronConfig
from nxdi.config.quantization import WeightQuantization, weight_quantization
from nxdi.runtime.checkpoint import find_checkpoint, read_checkpoint, read_file
from nxdi.runtime.prequantized import StoredFormat, nxdi_format, read_format
from nxdi.runtime.quantized import (
    KEYWORDS,
    is_own,
    is_own_record,
    own_keywords,
    read_quantized,
)


@dataclass(frozen=True)
class WeightsSource:
    """A checkpoint, in a folder or one file.

    format: how another program has quantized it. keywords: NeuronConfig's for weights as they are
    stored; none if they are not quantized. is_converted: it has the model's own names.
    """

    path: Path
    format: StoredFormat | None = None
    keywords: Mapping[str, Any] | None = None
    is_converted: bool = False

    def files(self) -> list[Path]:
        return [self.path] if self.path.is_file() else find_checkpoint(self.path)

    def read(self) -> dict[str, Tensor]:
        """The tensors as they are stored, memory-mapped."""
        if self.is_converted:
            return read_quantized(self.path)
        return read_file(self.path) if self.path.is_file() else read_checkpoint(self.path)

    def split(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(weights, their scales by the same names) of what `read` has returned."""
        return (tensors, {}) if self.format is None else self.format.split(tensors)

    def scheme(self, neuron: NeuronConfig) -> WeightQuantization | None:
        """How the stored weights are quantized, all else being as in `neuron`; None: not at all."""
        if self.keywords is None:
            return None
        asked = copy.copy(neuron)
        defaults = {f.name: f.default for f in fields(NeuronConfig) if f.name in KEYWORDS}
        vars(asked).update({**defaults, "quantized": True, **self.keywords})
        asked.modules_to_not_convert = None
        return weight_quantization(asked)


def source_of(folder: Path, config: InferenceConfig, neuron: NeuronConfig) -> WeightsSource:
    """The weights of a model: `quantized_checkpoints_path` if it is given, else its folder's.

    Raises: UnsupportedError for a folder quantized in a way that is not read.
    """
    stored = getattr(config, "quantization_config", None)
    if neuron.quantized_checkpoints_path is not None:
        path = Path(neuron.quantized_checkpoints_path)
        keywords = {name: getattr(neuron, name) for name in KEYWORDS}
        if is_own(path) or (path == folder and is_own_record(stored)):
            return WeightsSource(path, None, keywords, is_converted=True)
        scheme = weight_quantization(neuron)
        assert scheme is not None  # NeuronConfig does not take the path without `quantized`
        return WeightsSource(path, nxdi_format(scheme), keywords)
    if stored is None:
        return WeightsSource(folder)
    if is_own_record(stored):
        return WeightsSource(folder, None, own_keywords(stored), is_converted=True)
    found = read_format(stored)
    return WeightsSource(folder, found, found.keywords)
