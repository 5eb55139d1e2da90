"""A tiny random Llama, written as a GGUF file, comes back as the same Hugging Face model."""

from __future__ import annotations

import builtins
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from nxdi.errors import ConfigError, NxdiError, UnsupportedError, WeightError
from nxdi.tools.gguf import convert_gguf
from nxdi.tools.gguf_file import GgufFile, match_tensors, read_sizes
from tiny_models import tiny_hf_model

NUM_HEADS, NUM_KV_HEADS, NUM_LAYERS = 4, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "Ġt he", "1 2"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Writer = gguf.GGUFWriter


def make_model(tied: bool = False) -> PreTrainedModel:
    return tiny_hf_model(
        "llama",
        vocab_size=len(TOKENS),
        intermediate_size=96,  # the quantised formats store blocks of 32
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{GGUF_NAMES[stem]}.weight"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def permute(weight: np.ndarray, name: str) -> np.ndarray:
    """What llama.cpp does to the rows of q and k: the halves of each head are interleaved."""
    num_heads = {"q_proj": NUM_HEADS, "k_proj": NUM_KV_HEADS}.get(name.split(".")[-2])
    if num_heads is None:
        return weight
    halves = weight.reshape(num_heads, 2, -1, weight.shape[-1])
    return np.concatenate([np.stack([a, b], 1).reshape(-1, weight.shape[-1]) for a, b in halves])


def metadata(writer: Writer) -> None:
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(NUM_LAYERS)
    writer.add_feed_forward_length(96)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)


def tokenizer(writer: Writer, split: str = "smollm") -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    kinds: Mapping[str, Kind] | None = None,
    change: Callable[[Writer], None] = lambda writer: None,
    skip: tuple[str, ...] = (),
    architecture: str = "llama",
) -> Path:
    """Write `model`; `change` edits the writer before the end, `skip` names keys to leave out."""
    writer = Writer(path, architecture)
    metadata(writer)
    tokenizer(writer)
    for name, weight in model.named_parameters():
        data = permute(weight.detach().numpy(), name)
        kind = (kinds or {}).get(name.split(".")[-2], Kind.F32)
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(data, kind), raw_dtype=kind)
    change(writer)
    tables: list[dict[str, Any]] = [*writer.kv_data, *writer.tensors]
    for values in tables:
        for key in skip:
            values.pop(key, None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model() -> PreTrainedModel:
    return make_model()


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", make_model())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.arange(3, 23)[None]).logits
    return result


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_the_original_model(tmp_path: Path, tied: bool) -> None:
    model = make_model(tied)
    folder = convert_gguf(write_gguf(tmp_path / "m.gguf", model), tmp_path / "out")
    converted = AutoModelForCausalLM.from_pretrained(folder)
    assert converted.config.tie_word_embeddings == tied
    assert converted.config.rms_norm_eps == 1e-5
    assert torch.equal(logits(converted), logits(model))


def test_the_permutation_of_q_and_k_matters(tmp_path: Path, model: PreTrainedModel) -> None:
    folder = convert_gguf(write_gguf(tmp_path / "m.gguf", model), tmp_path / "out")
    weight = model.model.layers[0].self_attn.k_proj.weight
    weight.data = torch.from_numpy(permute(weight.detach().numpy(), "k_proj.weight"))
    converted = AutoModelForCausalLM.from_pretrained(folder)
    assert (logits(converted) - logits(model)).abs().max() > 0.01


@pytest.mark.parametrize(
    "kind", [Kind.Q8_0, Kind.Q4_1, Kind.F16, Kind.BF16], ids=lambda kind: kind.name
)
def test_quantised_tensors_are_dequantised_exactly(
    tmp_path: Path, model: PreTrainedModel, kind: Kind
) -> None:
    quantised = ("q_proj", "down_proj", "embed_tokens")
    path = write_gguf(tmp_path / "m.gguf", model, kinds=dict.fromkeys(quantised, kind))
    converted = AutoModelForCausalLM.from_pretrained(convert_gguf(path, tmp_path / "out"))
    for name, weight in model.named_parameters():
        if name.split(".")[-2] in quantised:
            values = gguf.quants.quantize(weight.detach().numpy(), kind)
            weight.data = torch.from_numpy(gguf.quants.dequantize(values, kind).copy())
    assert torch.equal(logits(converted), logits(model))


def test_folder_holds_configs_and_tokenizer(tmp_path: Path, plain_file: Path) -> None:
    folder = convert_gguf(plain_file, tmp_path / "new" / "out", progress=False)
    generation = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    tokens = AutoTokenizer.from_pretrained(folder)
    text = "in the\n\n12 ways, été"
    ids = tokens(text).input_ids
    assert tokens.decode(ids) == text
    assert TOKENS.index("Ġthe") in ids
    assert TOKENS.index("12") not in ids  # SmolLM splits digits before it merges
    chat = tokens.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"
    assert not list(folder.glob("*.gguf"))


@pytest.mark.parametrize("add_bos", [False, True])
def test_bos_is_added_only_if_the_file_says_so(
    tmp_path: Path, model: PreTrainedModel, add_bos: bool
) -> None:
    def change(writer: Writer) -> None:
        writer.add_add_bos_token(add_bos)
        writer.add_add_eos_token(False)

    path = write_gguf(tmp_path / "m.gguf", model, change=change)
    tokens = AutoTokenizer.from_pretrained(convert_gguf(path, tmp_path / "out"))
    first = [tokens.bos_token_id] if add_bos else []
    assert tokens("é").input_ids == [*first, *(TOKENS.index(token) for token in "Ã©")]


def test_a_control_token_is_found_in_text_and_not_decoded(tmp_path: Path, plain_file: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(convert_gguf(plain_file, tmp_path / "out"))
    ids = tokens("a<|im_end|>").input_ids
    assert ids == [TOKENS.index("a"), TOKENS.index("<|im_end|>")]
    assert tokens.decode(ids, skip_special_tokens=True) == "a"


def test_existing_output_is_refused_and_an_empty_folder_is_used(
    tmp_path: Path, plain_file: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert_gguf(plain_file, out)
    with pytest.raises(ConfigError, match="already exists"):
        convert_gguf(plain_file, out)


BAD_VALUES: dict[str, tuple[Any, type[NxdiError], str]] = {
    "llama.block_count": (2**31 - 1, WeightError, "too few"),
    "llama.attention.head_count": (0, WeightError, "positive int"),
    "llama.attention.layer_norm_rms_epsilon": (float("nan"), WeightError, "positive float"),
    "llama.embedding_length": (128, WeightError, "shape"),
    "llama.rope.dimension_count": (8, UnsupportedError, "head size"),
    "tokenizer.ggml.eos_token_id": (10**6, WeightError, "outside the vocabulary"),
    "tokenizer.ggml.token_type": (3, WeightError, "list of int"),
    "tokenizer.ggml.tokens": ([*TOKENS[:-1], TOKENS[0]], WeightError, "not distinct"),
    "tokenizer.chat_template": (["a", "list"], WeightError, "not a text"),
    "tokenizer.ggml.merges": (["no such"], WeightError, "tokenizer is damaged"),
    "tokenizer.ggml.model": ("llama", UnsupportedError, "of kind 'llama'"),
    "tokenizer.ggml.pre": ("llama-bpe", UnsupportedError, "smollm"),
}


@pytest.mark.parametrize("key", BAD_VALUES)
def test_bad_metadata_is_named(tmp_path: Path, model: PreTrainedModel, key: str) -> None:
    value, error, message = BAD_VALUES[key]

    def change(writer: Writer) -> None:
        writer.kv_data[0][key].value = value
        writer.kv_data[0][key].type = gguf.GGUFValueType.get_type(value)
        if key == "llama.embedding_length":
            writer.kv_data[0]["llama.rope.dimension_count"].value = value // NUM_HEADS

    path = write_gguf(tmp_path / "m.gguf", model, change=change)
    with pytest.raises(error, match=message):
        convert_gguf(path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == []


@pytest.mark.parametrize(
    "key",
    ["llama.block_count", "tokenizer.ggml.tokens", "blk.1.attn_k.weight", "output_norm.weight"],
)
def test_missing_part_is_named(tmp_path: Path, model: PreTrainedModel, key: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", model, skip=(key,))
    with pytest.raises(WeightError, match=key):
        convert_gguf(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_expert_count(8), "llama.expert_count"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32)), "rope_freqs"),
        (lambda w: w.add_value_length(8), "value_length"),
    ],
)
def test_unknown_features_are_refused(
    tmp_path: Path, model: PreTrainedModel, change: Callable[[Writer], None], message: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", model, change=change)
    with pytest.raises(UnsupportedError, match=message):
        convert_gguf(path, tmp_path / "out")


def test_other_architectures_are_refused(tmp_path: Path, model: PreTrainedModel) -> None:
    path = write_gguf(tmp_path / "m.gguf", model, architecture="gemma3")
    with pytest.raises(UnsupportedError, match="gemma3"):
        convert_gguf(path, tmp_path / "out")


def test_adding_a_token_without_id_is_refused(tmp_path: Path, model: PreTrainedModel) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        model,
        change=lambda writer: writer.add_add_bos_token(True),
        skip=("tokenizer.ggml.bos_token_id",),
    )
    with pytest.raises(WeightError, match="adds a bos token"):
        convert_gguf(path, tmp_path / "out")


def test_a_type_without_dequantisation_is_refused(tmp_path: Path, model: PreTrainedModel) -> None:
    integers = np.zeros((64,), np.int32)

    def change(writer: Writer) -> None:
        writer.tensors[0].pop("output_norm.weight")
        writer.add_tensor("output_norm.weight", integers, raw_dtype=Kind.I32)

    path = write_gguf(tmp_path / "m.gguf", model, change=change)
    with pytest.raises(UnsupportedError, match="I32"):
        convert_gguf(path, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a gguf file at all", b"\0" * 4096])
def test_not_a_gguf_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightError, match="not a GGUF file"):
        convert_gguf(path, tmp_path / "out")


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="is not a file"):
        convert_gguf(tmp_path / "absent.gguf", tmp_path / "out")


def test_the_missing_package_is_named(
    tmp_path: Path, plain_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without_gguf(name: str, *args: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real_import(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(UnsupportedError, match="nxdi\\[demo\\]"):
        convert_gguf(plain_file, tmp_path / "out")


def read_all(path: Path) -> None:
    file = GgufFile(path)
    match_tensors(file, read_sizes(file))


def test_every_truncation_is_detected(tmp_path: Path, plain_file: Path) -> None:
    data, path = plain_file.read_bytes(), tmp_path / "m.gguf"
    read_all(plain_file)
    for size in (*range(1, 400, 13), *range(400, len(data) - 32, len(data) // 30)):
        path.write_bytes(data[:size])
        with pytest.raises(WeightError):
            read_all(path)


def test_an_array_longer_than_the_file_is_detected_at_once(
    tmp_path: Path, plain_file: Path
) -> None:
    data = bytearray(plain_file.read_bytes())
    start = data.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
    data[start : start + 8] = (2**62).to_bytes(8, "little")
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(WeightError, match="damaged"):
        read_all(path)


def test_random_damage_gives_a_typed_error_or_nothing(tmp_path: Path, plain_file: Path) -> None:
    data, path = plain_file.read_bytes(), tmp_path / "m.gguf"
    header_size = GgufFile(plain_file).tensors[0].data_offset
    draw = random.Random(0)
    num_refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(header_size)] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_all(path)
        except NxdiError:
            num_refused += 1
    assert num_refused > 50
