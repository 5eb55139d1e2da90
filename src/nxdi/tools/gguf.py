"""Turn a Llama-architecture GGUF file into a Hugging Face folder that the library loads.

A GGUF file carries the weights (often quantised), the model's sizes and the tokenizer. The weights
are written dequantised to float32, which loses nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.runtime.files import atomic_directory
from nxdi.tools.gguf_file import GgufFile, LlamaSizes, Target, match_tensors, read_sizes
from nxdi.tools.gguf_tokenizer import read_special_ids, write_tokenizer

CONFIG_TOKENS = ("bos", "eos", "pad")  # those that config.json names
SAFETENSORS_ALIGNMENT = 8  # bytes; the header is padded to it, so that the data can be mapped


def convert_gguf(path: str | Path, out_dir: str | Path, *, progress: bool | None = None) -> Path:
    """Write the model in a GGUF file as a Hugging Face folder: weights, configs and tokenizer.

    The folder appears complete or not at all. One tensor at a time is held in memory.
    `progress` shows a bar; None shows it on a terminal only.

    Returns: the folder written.
    Raises:
        ConfigError: `out_dir` exists and is not an empty folder.
        UnsupportedError: another architecture, or a feature that the converter does not know.
        WeightError: not a GGUF file, damaged, incomplete, or with tensors of the wrong shape.
        ArtifactError: the folder cannot be written.
    """
    target = Path(out_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} already exists; remove it or name another output folder")
    file = GgufFile(Path(path))
    sizes = read_sizes(file)
    targets = match_tensors(file, sizes)
    special_ids = read_special_ids(file)
    special_tokens = {f"{n}_token_id": special_ids[n] for n in CONFIG_TOKENS if n in special_ids}
    with atomic_directory(target) as folder:
        write_tokenizer(file, folder)
        _write_json(folder / "config.json", _model_config(sizes) | special_tokens)
        _write_json(folder / "generation_config.json", special_tokens)
        _write_weights(file, targets, folder / "model.safetensors", progress)
    return target


def _model_config(sizes: LlamaSizes) -> dict[str, Any]:
    """`config.json` in the names of transformers 4, which transformers 5 reads as well."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "num_hidden_layers": sizes.num_layers,
        "max_position_embeddings": sizes.context_len,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_size,
        "vocab_size": sizes.vocab_size,
        "rms_norm_eps": sizes.rms_norm_eps,
        "rope_theta": sizes.rope_theta,
        "tie_word_embeddings": sizes.is_tied,
        "torch_dtype": "float32",
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_weights(
    file: GgufFile, targets: Mapping[str, Target], path: Path, progress: bool | None
) -> None:
    """Write a safetensors file tensor by tensor; its own library needs all of them in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for target in targets.values():
        start, end = end, end + math.prod(target.shape) * np.dtype(np.float32).itemsize
        header[target.name] = {"dtype": "F32", "shape": target.shape, "data_offsets": (start, end)}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % SAFETENSORS_ALIGNMENT)
    disable = None if progress is None else not progress
    with path.open("wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tqdm(file.tensors, desc="convert", unit="tensor", disable=disable):
            out.write(_as_float32(tensor, targets[tensor.name]).data)


def _as_float32(tensor: Any, target: Target) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A tensor's values, with the rows of q and k in Hugging Face's order.

    GGUF keeps a head's rotary pairs side by side (0 1 0 1 ...); Hugging Face keeps the first
    elements of all pairs before the second ones (0 0 ... 1 1 ...).
    """
    from gguf import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise UnsupportedError(
            f"tensor {tensor.name} is stored as {tensor.tensor_type.name}, which cannot be read; "
            "use a file in another quantisation"
        ) from error
    if target.permuted_heads is not None:
        pairs = values.reshape(target.permuted_heads, -1, 2, target.shape[-1])
        values = pairs.swapaxes(1, 2).reshape(target.shape)
    return np.ascontiguousarray(values, dtype="<f4")
