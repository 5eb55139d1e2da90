"""What a folder of quantized weights decides of a model's options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nxdi.config.quantization import EXPERT_WISE, PER_CHANNEL
from nxdi.errors import UnsupportedError
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.modules.quantization import never_quantized, quantizable_modules, weight_names
from nxdi.runtime.checkpoint import listed
from nxdi.runtime.prequantized import read_format
from nxdi.runtime.quantized import check_agrees, folder_quantization, is_own_record, own_keywords
from nxdi.types import Phase

_NAMED, _SKIPPED = "quantized_checkpoints_path", "modules_to_not_convert"


def with_folder_options(
    model_cls: type[NeuronApplicationBase], folder: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """NeuronConfig's keywords with those that a folder of quantized weights decides.

    Weights stay as they are stored, but for `modules_to_not_convert`; with quantized=False all are
    widened when they are loaded. Only the headers of the checkpoint are read.
    Raises: ConfigError if `options` ask for another quantization; UnsupportedError or WeightError
    for a folder quantized in a way that is not read.
    """
    stored = folder_quantization(folder)
    if stored is None or options.get(_NAMED) is not None:
        return dict(options)
    if is_own_record(stored):
        decided = own_keywords(stored)
        check_agrees(folder, options, {"quantized": True, **decided})
        return {**options, "quantized": True, **decided, _NAMED: str(folder)}
    found = read_format(stored)
    if options.get("quantized") is False:
        return dict(options)
    asked = list(options.get(_SKIPPED) or ())
    plain = {name: value for name, value in options.items() if name not in ("quantized", _SKIPPED)}
    skipped, has_experts = _plain_modules(model_cls, folder, plain, asked)
    decided = dict(found.keywords)
    if has_experts and decided["quantization_type"] == PER_CHANNEL:
        decided["quantization_type"] = EXPERT_WISE  # each has scales of its own
    check_agrees(folder, options, {"quantized": True, **decided})
    return {**options, "quantized": True, **decided, _SKIPPED: sorted({*asked, *skipped})}


def _plain_modules(
    model_cls: type[NeuronApplicationBase],
    folder: Path,
    options: Mapping[str, Any],
    asked: list[str],
) -> tuple[list[str], bool]:
    """(modules that could be quantized and are not stored so, whether experts are).

    asked: parts of the names of modules that are not to be kept quantized.
    """
    neuron = model_cls.get_config_cls().get_neuron_config_cls()(**options)
    app = model_cls(folder, neuron_config=neuron)
    model = app.build(Phase.DECODE)
    scales = app.stored_scales(model)
    modules = {
        name: weight_names(name, module) for name, module in quantizable_modules(model, app.is_tied)
    }
    known = {weight for weights in modules.values() for weight in weights}
    widened = [name for name in never_quantized(model) if f"{name}.weight" in scales]
    foreign = {
        weight
        for weight in scales.keys() - known
        if not any(part in weight for part in [*asked, *widened])
    }
    if foreign:
        raise UnsupportedError(
            f"{folder} has quantized weights where the model takes none: {listed(foreign)}; add "
            f"them to {_SKIPPED}, and they are widened when they are loaded"
        )
    skipped = [name for name, weights in modules.items() if not scales.keys() & {*weights}]
    return [*skipped, *widened], any(scale.dim() == 3 for scale in scales.values())
