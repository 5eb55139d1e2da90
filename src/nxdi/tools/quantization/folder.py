"""A model folder with quantized weights, made from one without, and how far its weights moved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from nxdi.config import serialize
from nxdi.models.auto import AutoModelForCausalLM
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.modules.quantization import (
    dequantize,
    parts_of,
    quantize_state,
    quantized_names,
    scale_name,
)
from nxdi.runtime.files import atomic_directory
from nxdi.runtime.progress import Progress
from nxdi.runtime.quantized import quantization_record, write_quantized
from nxdi.runtime.weights import check_weights, model_tensors
from nxdi.tools.model_folder import check_empty, copy_companions
from nxdi.types import Phase


@dataclass(frozen=True)
class LayerError:
    """How far a layer's weights moved: root mean square of the error over that of the weights."""

    name: str
    relative: float


@dataclass(frozen=True)
class QuantizationReport:
    """What quantizing a folder did. Sizes in bytes, of all weights once."""

    layers: list[LayerError]
    size_before: int
    size_after: int

    @property
    def worst(self) -> LayerError:
        return max(self.layers, key=lambda layer: layer.relative)


def quantize_folder(
    model_dir: str | PathLike[str],
    out_dir: str | PathLike[str],
    progress: bool | None = None,
    architecture: str | None = None,
    **options: Any,
) -> QuantizationReport:
    """Write a model folder with quantized weights, which loads like any other.

    progress: show a progress bar (default: on a terminal).
    architecture: as `AutoModelForCausalLM.from_pretrained` takes it.
    options: quantization_dtype, quantization_type and its kin, and modules_to_not_convert of
    NeuronConfig.
    Raises: ConfigError if `out_dir` is not empty, or for an option that quantization does not have.
    """
    source, target = Path(model_dir), Path(out_dir)
    check_empty(target)
    model_cls = AutoModelForCausalLM.class_for(source, architecture)
    options_cls = model_cls.get_config_cls().get_neuron_config_cls()

    common = {"torch_dtype": "float32", "backend": "cpu"}

    def app(asked: Mapping[str, Any]) -> NeuronBaseForCausalLM:
        return model_cls(source, neuron_config=options_cls(**common, **asked))

    quantized = app({"quantized": True, **options})
    scheme = quantized.weight_quantization()
    assert scheme is not None
    model = quantized.build(Phase.DECODE)
    before = app({}).checked_weights()[1]
    after = quantize_state(model, before, scheme)
    wanted = model_tensors(model)
    check_weights(wanted, after)

    def error(name: str) -> LayerError:
        stored, scale, weight = after[name], after[scale_name(name)], before[name].float()
        moved = dequantize(stored, scale, scheme, *parts_of(wanted[name])) - weight
        size = float(weight.pow(2).mean().sqrt())
        relative = float(moved.pow(2).mean().sqrt()) / size if size else 0.0
        return LayerError(name.removesuffix(".weight"), relative)

    layers = []
    names = quantized_names(model)
    with Progress("quantize", progress) as bar:
        for done, name in enumerate(names, start=1):
            layers.append(error(name))
            bar.report(done, len(names), name)
    report = QuantizationReport(layers, _size(before), _size(after))
    write_folder(source, target, quantization_record(options), after)
    return report


def write_folder(
    source: Path, target: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write the folder of a model in `source` with quantized weights.

    record: its `quantization_config`.
    """
    config = serialize.parse(serialize.read_text(source / "config.json"), "config.json")
    config["quantization_config"] = record
    with atomic_directory(target) as folder:
        copy_companions(source, folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_quantized(folder, tensors)


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors.values()}.values())
