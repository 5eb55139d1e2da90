"""Folders of compressed-tensors (LLM Compressor): int8, float8, and int4 in int32 words.

Source: the formats int-quantized, float-quantized, naive-quantized and pack-quantized of
github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nxdi.config.activation_quantization import DYNAMIC
from nxdi.config.limits import shown
from nxdi.config.quantization import BLOCKWISE, INT4, PER_CHANNEL
from nxdi.errors import UnsupportedError, WeightError
from nxdi.runtime.prequantized.fields import mapping, matcher, names, refuse_others, sizes
from nxdi.runtime.prequantized.stored import StoredFormat, by_block, by_row

_Unpack = Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]

# (type, bits) -> NeuronConfig's name, and the formats that hold it.
_KINDS = {
    ("int", 8): ("int8", torch.int8, ("int-quantized", "naive-quantized")),
    ("float", 8): ("f8e4m3", torch.float8_e4m3fn, ("float-quantized", "naive-quantized")),
    ("int", 4): (INT4, torch.int32, ("pack-quantized",)),
}
_PACKED_SUFFIX, _PER_WORD = "_packed", 8
# What would change the meaning of weights.
_UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "quantization_status": ("compressed", None),
    "kv_cache_scheme": (None,),
    "transform_config": (None, {}),
}
_UNDERSTOOD_OF_WEIGHTS: dict[str, tuple[Any, ...]] = {
    "symmetric": (True, None),
    "dynamic": (False, None),
    "actorder": (None, "weight", "static"),
}


def read_compressed_tensors(quantization: Mapping[str, Any]) -> StoredFormat:
    """The format of `quant_method` "compressed-tensors", of which all groups must be the same."""
    refuse_others(quantization, _UNDERSTOOD)
    sparsity = mapping(quantization.get("sparsity_config") or {}, "sparsity_config")
    refuse_others(sparsity, {"format": ("dense", None)})
    groups = mapping(quantization.get("config_groups"), "config_groups")
    targets, weights, inputs, form = _only_scheme(groups, quantization.get("format"))
    is_ignored = matcher(names(quantization.get("ignore"), "ignore"), "ignore")
    is_target = matcher(targets, "targets")
    # A class such as Linear is every layer that is stored as such.
    has_classes = any(target.isidentifier() and target[:1].isupper() for target in targets)
    name, dtype = _kind(weights, form)
    block, unpack = _strategy(weights)
    return StoredFormat(
        keywords={"quantization_dtype": name, **block, **_activations(inputs, weights)},
        suffix=_PACKED_SUFFIX if name == INT4 else "",
        dtype=dtype,
        scale_names=lambda weight: (f"{weight}_scale",),
        unpack=_unpacked(unpack) if name == INT4 else unpack,
        is_declared=lambda module: not is_ignored(module) and (has_classes or is_target(module)),
        companions=("_shape",) if name == INT4 else (),
    )


def _only_scheme(
    groups: Mapping[str, Any], common: object
) -> tuple[list[str], Mapping[str, Any], Mapping[str, Any] | None, object]:
    """(targets, weights, input_activations, format) of groups that differ in their targets only."""
    targets: list[str] = []
    schemes = []
    for key, group in groups.items():
        group = mapping(group, key)
        refuse_others(group, {"output_activations": (None,)})
        targets += names(group.get("targets"), "targets")
        inputs = group.get("input_activations")
        schemes.append(
            (
                mapping(group.get("weights"), "weights"),
                None if inputs is None else mapping(inputs, "input_activations"),
                group.get("format") or common,
            )
        )
    if not schemes or any(scheme != schemes[0] for scheme in schemes):
        raise UnsupportedError(
            f"quantization_config has {len(schemes)} config_groups that differ, and one scheme is "
            "read for all layers; quantize the original checkpoint with `nxdi quantize`"
        )
    return (targets, *schemes[0])


def _activations(inputs: Mapping[str, Any] | None, weights: Mapping[str, Any]) -> dict[str, Any]:
    """NeuronConfig's keywords for quantized inputs: a scale for each token, made as it comes."""
    if inputs is None:
        return {}
    refuse_others(
        inputs,
        {
            "symmetric": (True, None),
            "dynamic": (True,),
            "strategy": ("token",),
            "type": (weights.get("type"),),
            "num_bits": (weights.get("num_bits"),),
        },
    )
    return {"activation_quantization_type": DYNAMIC}


def _kind(weights: Mapping[str, Any], form: object) -> tuple[str, torch.dtype]:
    refuse_others(weights, _UNDERSTOOD_OF_WEIGHTS)
    found = weights.get("type"), weights.get("num_bits")
    for kind, (name, dtype, formats) in _KINDS.items():
        if kind == found and form in formats:
            return name, dtype
    known = "; ".join(
        f"{kind}{bits}: {' or '.join(formats)}" for (kind, bits), (_, _, formats) in _KINDS.items()
    )
    raise UnsupportedError(
        f"quantization_config has type={shown(found[0])}, num_bits={shown(found[1])} in "
        f"format={shown(form)}, which is not read; these are: {known}"
    )


def _strategy(weights: Mapping[str, Any]) -> tuple[dict[str, Any], _Unpack]:
    """NeuronConfig's keywords for the values that have one scale, and how scales are read."""
    strategy = weights.get("strategy")
    if strategy in ("tensor", "channel"):
        return {"quantization_type": PER_CHANNEL}, by_row
    if strategy == "group":
        block = sizes([1, weights.get("group_size")], "group_size")
    elif strategy == "block":
        block = sizes(weights.get("block_structure"), "block_structure")
    else:
        raise UnsupportedError(
            f"quantization_config has strategy={shown(strategy)}, which is not read; it may be "
            "tensor, channel, group or block"
        )
    keywords = {"quantization_type": BLOCKWISE, "quantization_block_size": list(block)}
    return keywords, by_block(*block)


def _unpacked(unpack: _Unpack) -> _Unpack:
    """Words of eight values, each with 8 added, the first in the lowest bits -> two per byte.

    Without the 8 they are what `Int4` stores: adding it has turned the upper of four bits.
    """

    def unpack_words(name: str, words: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        if words.dim() != 2:
            raise WeightError(
                f"{name}{_PACKED_SUFFIX} has shape {tuple(words.shape)}, not that of a matrix; "
                "fetch the checkpoint again"
            )
        rows, num_words = words.shape
        values = words.new_empty(rows, num_words * _PER_WORD, device="meta")
        _, scales = unpack(name, values, scale)
        return words.contiguous().view(torch.uint8) ^ 0x88, scales

    return unpack_words
