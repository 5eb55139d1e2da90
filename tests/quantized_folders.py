"""Model folders as other programs quantize them, and what their weights stand for.

Whoever defined a format is the oracle of it: compressed-tensors packs and unpacks its own, and
transformers widens float8 in blocks and MXFP4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tiny_models import save_tiny

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """One way to quantize: a weight -> (what is stored, by suffix; what it stands for)."""

    quantization: Mapping[str, Any]
    store: Callable[[Tensor], tuple[Tensors, Tensor]]


def compressed(form: str, inputs: Mapping[str, Any] | None = None, **weights: Any) -> Kind:
    """A kind of compressed-tensors."""
    weights = {"symmetric": True, **weights}
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    compressor = BaseCompressor.get_value_from_registry(form)

    def store(weight: Tensor) -> tuple[Tensors, Tensor]:
        found = {"weight": weight, "weight_scale": _scales(weight, weights)}
        stored = compressor.compress(found, scheme)
        return stored, compressor.decompress(stored, scheme)["weight"]

    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return Kind(
        {
            "quant_method": "compressed-tensors",
            "format": form,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": ["lm_head"],
        },
        store,
    )


def _scales(weight: Tensor, weights: Mapping[str, Any]) -> Tensor:
    """Scales that need not fit: what does not fit is clamped when it is stored."""
    bound = {4: 7.5, 8: 127.5}[weights["num_bits"]] if weights["type"] == "int" else 448.0
    size = weight.abs().float()
    if weights["strategy"] == "group":
        size = size.unflatten(1, (-1, weights["group_size"])).amax(2)
    elif weights["strategy"] == "block":
        size = _by_block(size, *weights["block_structure"])
    else:
        size = size.amax(1, keepdim=True) if weights["strategy"] == "channel" else size.max()[None]
    return (size / bound).clamp(min=1e-30)


def _by_block(size: Tensor, rows: int, columns: int) -> Tensor:
    padded = torch.nn.functional.pad(size, (0, -size.shape[1] % columns, 0, -size.shape[0] % rows))
    return padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).amax((1, 3))


def fp8(rows: int, columns: int) -> Kind:
    """float8 in blocks, as DeepSeek-V3 has it."""

    def store(weight: Tensor) -> tuple[Tensors, Tensor]:
        scale = (_by_block(weight.abs(), rows, columns) / 448).clamp(min=1e-30)
        units = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        units = units[: weight.shape[0], : weight.shape[1]]
        stored = (weight / units).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {"weight": stored, "weight_scale_inv": scale}, widen_fp8(stored, scale)

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    return Kind({**config, "weight_block_size": [rows, columns]}, store)


def widen_fp8(stored: Tensor, scale: Tensor) -> Tensor:
    """What transformers makes of it."""
    found: Tensor = Fp8Dequantize(None)._dequantize_one(stored, scale, torch.float32)
    return found


def widen_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """What transformers makes of it: [E, N, K / 32, 16] -> [E, K, N]."""
    return convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)


KINDS = {
    "int8 tensor": compressed("int-quantized", num_bits=8, type="int", strategy="tensor"),
    "int8 channel": compressed("int-quantized", num_bits=8, type="int", strategy="channel"),
    "int8 group": compressed(
        "int-quantized", num_bits=8, type="int", strategy="group", group_size=16
    ),
    "float8 tensor": compressed("float-quantized", num_bits=8, type="float", strategy="tensor"),
    "float8 channel": compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    "float8 block": compressed(
        "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[16, 8]
    ),
    "int4 channel": compressed("pack-quantized", num_bits=4, type="int", strategy="channel"),
    "int4 group": compressed(
        "pack-quantized", num_bits=4, type="int", strategy="group", group_size=16
    ),
    "fp8": fp8(16, 8),
}


def save_quantized(
    model: PreTrainedModel,
    folder: Path,
    kind: Kind,
    is_stored: Callable[[str], bool],
    **changes: Any,
) -> PreTrainedModel:
    """Write a folder whose weights that `is_stored` picks, by the names of modules, are quantized.

    changes: to its quantization_config. Returns: the model with what the folder stands for.
    """
    plain = folder.parent / f"{folder.name}_plain"
    save_tiny(model, plain)
    save_tiny(model, folder)
    tensors = load_file(plain / "model.safetensors")
    stored, widened = {}, {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module == name or tensor.dim() != 2 or not is_stored(module):
            stored[name], widened[name] = tensor, tensor
            continue
        parts, widened[name] = kind.store(tensor)
        stored.update({f"{module}.{suffix}": part for suffix, part in parts.items()})
    write_tensors(folder, stored)
    write_tensors(plain, widened)
    edit_quantization(folder, **{**kind.quantization, **changes})
    return type(model).from_pretrained(plain, dtype=torch.float32).eval()


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace the weights of a folder."""
    dense = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(dense, folder / "model.safetensors", metadata={"format": "pt"})


def edit_quantization(folder: Path, **changes: Any) -> None:
    """Change the quantization_config of a folder; None removes a field."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    found = {**config.get("quantization_config", {}), **changes}
    config["quantization_config"] = found
    file.write_text(json.dumps(config))


def save_mxfp4(model: PreTrainedModel, folder: Path, seed: int = 0) -> PreTrainedModel:
    """Write a GPT-OSS with random experts in MXFP4. Returns: as `save_quantized`."""
    plain = folder.parent / f"{folder.name}_plain"
    save_tiny(model, plain)
    save_tiny(model, folder)
    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(plain / "model.safetensors")
    stored, widened = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            continue
        num_experts, inputs, outputs = tensor.shape
        shape = (num_experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=draw, dtype=torch.uint8)
        scales = torch.randint(121, 125, shape, generator=draw, dtype=torch.uint8)
        del stored[name]
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        widened[name] = widen_mxfp4(blocks, scales)
    write_tensors(folder, stored)
    write_tensors(plain, widened)
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    edit_quantization(folder, quant_method="mxfp4", modules_to_not_convert=[*skipped, "lm_head"])
    return type(model).from_pretrained(plain, dtype=torch.float32).eval()
