"""What the modules of the reference take and return for one text, and which of ours they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.runtime.checkpoint import read_checkpoint
from nxdi.tools.accuracy.tensors import hooked

ROTARY = "rotary_emb"


class Trace(NamedTuple):
    """One text of L tokens: inputs and outputs [L, ...] by module, and logits float32 [L, V]."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    logits: Tensor


@torch.no_grad()
def trace(reference: Any, tokens: Tensor, prefix: str) -> Trace:
    """One forward of the reference; modules that it calls more than once are left out.

    tokens: int64 [L]; prefix: what module names begin with that ours have not, such as "model.".
    """
    found = Trace({}, {}, torch.empty(0))
    modules = {name: module for name, module in reference.named_modules() if name}
    calls: Counter[str] = Counter()

    def on_input(name: str, tensor: Tensor) -> None:
        found.inputs[name.removeprefix(prefix)] = tensor[0]

    def on_output(name: str, tensor: Tensor) -> None:
        # Gemma's embedding multiplies what it looks up; ours leaves that to the model.
        if hasattr(modules[name], "embed_scale"):
            tensor = tensor / modules[name].embed_scale
        name = name.removeprefix(prefix)
        # OLMoE goes on in place with what its projections return.
        found.outputs[name] = in_any_order(name, tensor)[0].clone()
        calls[name] += 1

    with hooked(reference, modules, on_input, on_output):
        logits = reference(input_ids=tokens[None], use_cache=False).logits
    for name in [name for name, count in calls.items() if count > 1]:
        found.outputs.pop(name)
        found.inputs.pop(name, None)
    return found._replace(logits=logits[0].float())


def in_any_order(name: str, tensor: Tensor) -> Tensor:
    """Angles sorted, since a model may lay them out as it likes; other activations as they are."""
    if not name.endswith(ROTARY):
        return tensor
    if tensor.is_complex():  # one number for each pair of values, where others have cos and sin
        tensor = torch.view_as_real(tensor).flatten(-2).repeat_interleave(2, dim=-1)
    return tensor.sort(dim=-1).values


def pair_modules(
    model: NeuronBaseForCausalLM, ours: Iterable[str], known: Container[str]
) -> dict[str, str]:
    """The reference's name for each of our modules that it has too.

    known: the names of the reference's modules. The model's own conversion says which are renamed.
    """
    renamed = _renamed_by_conversion(model)
    taken, pairs = set(renamed.values()), {}
    for name in ours:
        plain = name.replace(
            ".qkv_proj.", "."
        )  # a part of our attention that the reference has not
        own = "" if plain in taken else plain
        theirs = renamed.get(plain, own)
        if theirs not in known:
            theirs = own  # transformers may have renamed what old checkpoints still say
        if theirs not in known and name.endswith(ROTARY):
            theirs = ROTARY  # the reference has one for all layers
        if theirs in known:
            pairs[name] = theirs
    return pairs


def _renamed_by_conversion(model: NeuronBaseForCausalLM) -> dict[str, str]:
    """Our names of modules with weights -> the checkpoint's; parents follow from their children.

    Found by giving the conversion tensors that nobody reads, and seeing what it calls them.
    """
    prefix = model._STATE_DICT_MODEL_PREFIX
    checkpoint = {
        name.removeprefix(prefix): torch.empty(tensor.shape, dtype=tensor.dtype)
        for name, tensor in read_checkpoint(model.model_path).items()
    }
    origin = {tensor.data_ptr(): name for name, tensor in checkpoint.items()}
    names: dict[str, str] = {}
    converted = model.convert_hf_to_neuron_state_dict(dict(checkpoint), model.config)
    for name, tensor in converted.items():
        ours, theirs = name, origin.get(tensor.data_ptr(), "")
        while ours.count(".") == theirs.count(".") > 0:
            ours, theirs = ours.rpartition(".")[0], theirs.rpartition(".")[0]
            names.setdefault(ours, theirs)
    return names


def relative_errors(actual: Tensor, expected: Tensor) -> Tensor:
    """The largest error of each token, of its largest value. [S, ...] twice -> [S]; NaN is inf.

    Whole numbers are right (0) or wrong (1).
    """
    if not expected.is_floating_point():
        return (actual != expected).reshape(len(expected), -1).any(dim=1).float()
    actual, expected = (x.reshape(len(x), -1).float() for x in (actual, expected))
    largest = expected.abs().amax(dim=1)
    # A token of hardly any size is measured by the others.
    scale = torch.maximum(largest, 1e-3 * largest.max()).clamp_min(1e-30)
    errors = (actual - expected).abs().amax(dim=1) / scale
    return torch.nan_to_num(errors, nan=torch.inf, posinf=torch.inf)
