"""Read a Llama-architecture GGUF file: its metadata, the model's sizes, and what each tensor is.

The file is untrusted. Every size in it is checked against the end of the file and against the
model's shape before anything is allocated, and whatever is not understood is refused by name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from nxdi.errors import UnsupportedError, WeightError

if TYPE_CHECKING:
    from gguf import GGUFReader

T = TypeVar("T")

PREFIX = "llama."
TOKENS = "tokenizer.ggml.tokens"

# Any other `llama.*` key (rope scaling, experts, a sliding window, ...) would change the results.
KNOWN_METADATA = frozenset(
    PREFIX + name
    for name in (
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
    )
)


class LlamaSizes(NamedTuple):
    """The numbers that define a Llama model."""

    num_layers: int
    context_len: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    is_tied: bool


class Target(NamedTuple):
    """A tensor in Hugging Face's form; `permuted_heads` is set where GGUF permutes the rows."""

    name: str
    shape: tuple[int, ...]
    permuted_heads: int | None = None


class GgufFile:
    """An open GGUF file: tensors, and metadata read with checks.

    Raises: UnsupportedError without the gguf package, WeightError if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _open_reader(path)
        self.tensors = self._reader.tensors

    def names(self) -> list[str]:
        """The names of all metadata."""
        return list(self._reader.fields)

    def get(self, key: str) -> Any:
        """The metadata value of `key`, or None."""
        field = self._reader.get_field(key)
        try:
            return None if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise WeightError(f"{self.path}: {key} is damaged ({error}); fetch it again") from error

    def array(self, key: str, kind: type[T]) -> list[T]:
        """The metadata list of `key`, whose items are all of one kind."""
        values = self.get(key)
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise WeightError(
                f"{self.path}: {key} is missing, or not a list of {kind.__name__}; "
                "use a complete file"
            )
        return values

    def integer(self, name: str, default: int | None = None) -> int:
        """The positive integer `llama.{name}`."""
        return int(self._positive(name, int, default))

    def real(self, name: str, default: float | None = None) -> float:
        """The positive float32 `llama.{name}` as its shortest decimal: 1e-05, not 9.9999997e-06."""
        return float(str(np.float32(self._positive(name, float, default))))

    def _positive(self, name: str, kind: type[float], default: float | None) -> Any:
        value = self.get(PREFIX + name)
        if value is None:
            value = default
        if value is None:
            raise WeightError(f"{self.path} lacks {PREFIX}{name}; use a complete file")
        if type(value) is not kind or not 0 < value < math.inf:
            raise WeightError(
                f"{self.path}: {PREFIX}{name} is {value!r} and must be a positive "
                f"{kind.__name__}; fetch the file again"
            )
        return value


def _open_reader(path: Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UnsupportedError(
            "reading GGUF needs the gguf package; run: pip install 'nxdi[demo]'"
        ) from error

    class BoundedReader(GGUFReader):
        """The stock reader gives short arrays past the end of a cut file, and may loop on them."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > self.data.size:
                raise ValueError(f"it has {self.data.size} bytes and should have at least {end}")
            return super()._get(offset, dtype, count, override_order)

    if not path.is_file():
        raise WeightError(f"{path} is not a file; give the path of a .gguf file")
    try:
        return BoundedReader(path)
    except (ValueError, LookupError, OverflowError, RecursionError) as error:
        raise WeightError(
            f"{path} is not a GGUF file, or is damaged ({error}); fetch it again"
        ) from error


def read_sizes(file: GgufFile) -> LlamaSizes:
    """The model's sizes from the metadata.

    Raises: UnsupportedError for anything but a plain Llama, WeightError for missing or bad values.
    """
    architecture = file.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedError(
            f"{file.path} holds a model of architecture {architecture!r}; only 'llama' is converted"
        )
    if unknown := [n for n in file.names() if n.startswith(PREFIX) and n not in KNOWN_METADATA]:
        raise UnsupportedError(
            f"{file.path} uses {', '.join(unknown)}, which the converter does not know; "
            "use the model's Hugging Face folder instead"
        )
    num_heads = file.integer("attention.head_count")
    return LlamaSizes(
        num_layers=file.integer("block_count"),
        context_len=file.integer("context_length"),
        hidden_size=file.integer("embedding_length"),
        intermediate_size=file.integer("feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=file.integer("attention.head_count_kv", num_heads),
        head_size=_read_head_size(file, num_heads),
        vocab_size=file.integer("vocab_size", len(file.array(TOKENS, str))),
        rms_norm_eps=file.real("attention.layer_norm_rms_epsilon"),
        rope_theta=file.real("rope.freq_base", 10000.0),
        is_tied=all(tensor.name != "output.weight" for tensor in file.tensors),
    )


def _read_head_size(file: GgufFile, num_heads: int) -> int:
    default = file.integer("embedding_length") // num_heads
    head_size = file.integer("attention.key_length", default)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (size := file.integer(name, head_size)) != head_size:
            raise UnsupportedError(
                f"{file.path}: {PREFIX}{name} is {size} and the head size is {head_size}; "
                "only models where they are equal are converted"
            )
    return head_size


def match_tensors(file: GgufFile, sizes: LlamaSizes) -> dict[str, Target]:
    """What each tensor of the file becomes, in the file's order.

    Raises: WeightError if one is missing or has another shape, UnsupportedError if one is unknown.
    """
    # A damaged layer count must not make a table of billions of names.
    if sizes.num_layers > len(file.tensors):
        raise WeightError(
            f"{file.path} holds {len(file.tensors)} tensors, too few for {sizes.num_layers} layers"
        )
    expected = _expected_tensors(sizes)
    found = {t.name: tuple(int(size) for size in reversed(t.shape)) for t in file.tensors}
    if unknown := sorted(found.keys() - expected.keys()):
        raise UnsupportedError(
            f"{file.path} holds {', '.join(unknown[:5])}, which the converter does not know; "
            "use the model's Hugging Face folder instead"
        )
    if missing := sorted(expected.keys() - found.keys()):
        raise WeightError(f"{file.path} lacks {', '.join(missing[:5])}; use a complete file")
    for name, shape in found.items():
        if shape != expected[name].shape:
            raise WeightError(
                f"{file.path}: tensor {name} has shape {shape} and the metadata says "
                f"{expected[name].shape}; fetch the file again"
            )
    return {name: expected[name] for name in found}


def _expected_tensors(sizes: LlamaSizes) -> dict[str, Target]:
    hidden, inner, vocab = sizes.hidden_size, sizes.intermediate_size, sizes.vocab_size
    q_size, kv_size = sizes.num_heads * sizes.head_size, sizes.num_kv_heads * sizes.head_size
    targets = {
        "token_embd": Target("model.embed_tokens", (vocab, hidden)),
        "output_norm": Target("model.norm", (hidden,)),
    }
    if not sizes.is_tied:
        targets["output"] = Target("lm_head", (vocab, hidden))
    per_layer = {
        "attn_norm": Target("input_layernorm", (hidden,)),
        "attn_q": Target("self_attn.q_proj", (q_size, hidden), sizes.num_heads),
        "attn_k": Target("self_attn.k_proj", (kv_size, hidden), sizes.num_kv_heads),
        "attn_v": Target("self_attn.v_proj", (kv_size, hidden)),
        "attn_output": Target("self_attn.o_proj", (hidden, q_size)),
        "ffn_norm": Target("post_attention_layernorm", (hidden,)),
        "ffn_gate": Target("mlp.gate_proj", (inner, hidden)),
        "ffn_up": Target("mlp.up_proj", (inner, hidden)),
        "ffn_down": Target("mlp.down_proj", (hidden, inner)),
    }
    for layer in range(sizes.num_layers):
        for name, target in per_layer.items():
            full_name = f"model.layers.{layer}.{target.name}"
            targets[f"blk.{layer}.{name}"] = target._replace(name=full_name)
    return {f"{name}.weight": t._replace(name=f"{t.name}.weight") for name, t in targets.items()}
