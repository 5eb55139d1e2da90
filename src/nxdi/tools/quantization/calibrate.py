"""Static scales of activations: what a text makes of the inputs of quantized layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from nxdi.config.activation_quantization import STATIC
from nxdi.config.quantization import largest_stored
from nxdi.errors import ConfigError, ShapeError
from nxdi.models.auto import AutoModelForCausalLM
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.modules.quantization.activations import quantizable_inputs
from nxdi.runtime.quantized import folder_quantization, read_quantized
from nxdi.tools.accuracy.tensors import eager_roots, hooked
from nxdi.tools.model_folder import check_empty
from nxdi.tools.quantization.folder import write_folder

_LENGTH = 512  # tokens that are read at once


def calibrate_folder(
    quantized_dir: str | PathLike[str],
    out_dir: str | PathLike[str],
    tokens: Sequence[int],
    architecture: str | None = None,
) -> dict[str, float]:
    """Write a quantized folder again, with the scales of activation_quantization_type "static".

    The scale of a layer's input is that of the largest value that a text of `tokens` has there;
    what is left over after pieces of 512 tokens is not read.
    Returns: those largest values, by the names of the layers.
    Raises: ConfigError if `out_dir` is not empty, or nothing in the model can be calibrated;
    ShapeError for a text of less than two tokens.
    """
    source, target = Path(quantized_dir), Path(out_dir)
    check_empty(target)
    if len(tokens) < 2:
        raise ShapeError(f"{len(tokens)} tokens are too few to calibrate with; give 2 or more")
    length = min(len(tokens), _LENGTH)
    model = AutoModelForCausalLM.from_pretrained(
        source, architecture=architecture, backend="eager", torch_dtype="float32", seq_len=length
    )
    largest = _largest_inputs(model, torch.tensor(tokens, dtype=torch.int32), length)
    if not largest:
        raise ConfigError(
            f"{source} has no weights of 8 bits whose inputs could be quantized; write it with "
            "`nxdi quantize --dtype int8` (or f8e4m3, f8e5m2)"
        )
    tensors = read_quantized(source)
    for name, value in largest.items():
        bound = largest_stored(tensors[f"{name}.weight"].dtype, is_for_neuron=False)
        tensors[f"{name}.input_scale"] = torch.tensor([value / bound or 1.0])
    record = {**folder_quantization(source), "activation_quantization_type": STATIC}
    write_folder(source, target, record, tensors)
    return largest


def _largest_inputs(model: NeuronBaseForCausalLM, tokens: Tensor, length: int) -> dict[str, float]:
    """The largest magnitude that enters each layer with quantized weights."""
    largest: dict[str, float] = {}

    def note(name: str, x: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), float(x.abs().max()))

    with ExitStack() as stack:
        for root in eager_roots(model)[0]:
            names = [name for name, _ in quantizable_inputs(root)]
            stack.enter_context(hooked(root, names, note, None))
        for piece in tokens.split(length):
            if len(piece) == length:
                model(piece[None])
    return largest
