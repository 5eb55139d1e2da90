"""Deterministic damage to the files of a model folder: bytes, slices, and JSON values."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes], bytes]

_VALUES: list[Any] = [
    *(None, True, False, "", "x", "\ud800", "0", "../x", "/etc/passwd", "\0", "x" * 5000, [], {}),
    *(0, -1, 1, 2, 3, 5, 7, 17, 255, 1024, 2**16, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**12),
    *(10**30, 10**400, -(10**9), 0.0, -0.5, 0.3, 1e-300, 1e308, float("inf"), float("nan")),
    *([None], [[]], [0], [-1], ["x"], [10**12], {"x": 1}, {"": {}}, [{}], {"__class__": 1}),
    *("linear", "llama3", "dynamic", "yarn", "longrope", "default", "float64", "bfloat16", "gelu"),
    *("mistral", "qwen2", "gpt2", "LlamaForCausalLM", "MistralForCausalLM", "os:system", "F8_E4M3"),
    *("BF16", "I64", "{{ x }}", "{% for x in y %}", "{{ messages }}", "{{ [] * 9 }}"),
]
_NAMES = [
    *("num_labels", "id2label", "label2id", "layer_types", "sliding_window", "text_config"),
    *("rope_scaling", "rope_theta", "rope_parameters", "head_dim", "quantization_config"),
    *("auto_map", "attribute_map", "to_dict", "__class__", "__dict__", "_name_or_path", "self"),
    *("pruned_heads", "torch_dtype", "dtype", "tokenizer_class", "n_layer", "factor", "type"),
    *("add_bos_token", "extra_special_tokens", "added_tokens_decoder", "model_max_length"),
    *("sub_configs", "_attn_implementation", "gguf_file", "attn_implementation"),
    *("is_encoder_decoder", "problem_type", "chunk_size_feed_forward", "backbone", "cls", "name"),
    *("metadata", "neuron_config", "vocab", "merges", "unk_token", "truncation", "__metadata__"),
    *("partial_rotary_factor", "original_max_position_embeddings", "low_freq_factor"),
]


def flip(random: Random, data: bytes) -> bytes:
    """Change up to four bytes."""
    damaged = bytearray(data)
    for _ in range(random.randint(1, 4)):
        if damaged:
            damaged[random.randrange(len(damaged))] = random.randrange(256)
    return bytes(damaged)


def truncate(random: Random, data: bytes) -> bytes:
    """Cut the end, or rarely the start."""
    place = random.randrange(len(data) + 1)
    return data[:place] if random.random() < 0.8 else data[place:]


def splice(random: Random, data: bytes) -> bytes:
    """Copy a slice over another place, or in between."""
    start, place = random.randrange(len(data) + 1), random.randrange(len(data) + 1)
    piece = data[start : start + random.randint(1, 64)]
    return data[:place] + piece + data[place + random.choice((0, len(piece))) :]


def swap_values(random: Random, data: bytes) -> bytes:
    """Change JSON values: replace, remove, rename, add, exchange, nest, or repeat."""
    tree = json.loads(data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        tree = _edit(random, tree)
    return json.dumps(tree).encode(errors="surrogatepass")


def _edit(random: Random, tree: Any) -> Any:
    places = list(_places(tree))
    if not places or random.random() < 0.01:
        return random.choice(_VALUES)
    owner, key = random.choice(places)
    kind = random.randrange(8)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner[random.choice(_NAMES)] = owner.pop(key)
    elif kind == 2 and isinstance(owner, dict):
        owner[random.choice(_NAMES)] = random.choice(_VALUES)
    elif kind == 3:
        other, name = random.choice(places)
        owner[key], other[name] = other[name], owner[key]
    elif kind == 4:
        owner[key] = random.choice(([owner[key]], {"x": owner[key]}, [owner[key]] * 300))
    elif kind == 5 and isinstance(owner[key], int):
        owner[key] += random.choice((-2, -1, 1, 2, owner[key], 1000))
    else:
        owner[key] = random.choice(_VALUES)
    # An exchange can put a value inside itself.
    return json.loads(_text(tree))


def _text(tree: Any) -> str:
    try:
        return json.dumps(tree)
    except (ValueError, RecursionError):
        return "{}"


def _places(tree: Any) -> Any:
    """Every (container, key) of a JSON tree."""
    items: Any = ()
    if isinstance(tree, (dict, list)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def in_header(mutate: Mutator) -> Mutator:
    """The same damage to the header of a safetensors file, with and without the right length."""

    def damage(random: Random, data: bytes) -> bytes:
        end = 8 + struct.unpack("<Q", data[:8])[0]
        header = mutate(random, data[8:end])
        claims = (len(header), len(header), len(header), end - 8, random.randrange(2**64))
        return struct.pack("<Q", random.choice(claims)) + header + data[end:]

    return damage
