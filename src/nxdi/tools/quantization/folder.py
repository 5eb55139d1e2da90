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
from nxdi.errors import ConfigError
from nxdi.models.auto import AutoModelForCausalLM, new_model
from nxdi.modules.quantization import dequantize
from nxdi.runtime.files import atomic_directory
from nxdi.runtime.progress import Progress
from nxdi.runtime.quantized import quantization_record, write_quantized
from nxdi.tools.model_folder import copy_companions


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
    options: quantization_dtype, quantization_type and modules_to_not_convert of NeuronConfig.
    Raises: ConfigError if `out_dir` is not empty, or for an option that quantization does not have.
    """
    source, target = Path(model_dir), Path(out_dir)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} is not empty; choose another folder, or empty this one")
    model_cls = AutoModelForCausalLM.class_for(source, architecture)
    options_cls = model_cls.get_config_cls().get_neuron_config_cls()

    def weights(asked: Mapping[str, Any]) -> dict[str, Tensor]:
        common = {"torch_dtype": "float32", "backend": "cpu"}
        neuron = options_cls(**common, **asked)
        return new_model(model_cls, source, neuron)._checked_weights()[1]

    before, after = weights({}), weights({"quantized": True, **options})
    report = _compare(before, after, progress)
    config = serialize.parse(serialize.read_text(source / "config.json"), "config.json")
    config["quantization_config"] = quantization_record(options)
    with atomic_directory(target) as folder:
        copy_companions(source, folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_quantized(folder, after)
    return report


def _compare(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], progress: bool | None
) -> QuantizationReport:
    scales = [name for name in after if name.endswith(".scale") and name not in before]
    layers = []
    with Progress("quantize", progress) as bar:
        for done, scale in enumerate(scales, start=1):
            name = scale.removesuffix(".scale")
            weight = before[f"{name}.weight"].float()
            error = dequantize(after[f"{name}.weight"], after[scale]) - weight
            size = float(weight.pow(2).mean().sqrt())
            layers.append(LayerError(name, float(error.pow(2).mean().sqrt()) / size if size else 0))
            bar.report(done, len(scales), name)
    return QuantizationReport(layers, _size(before), _size(after))


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors.values()}.values())
