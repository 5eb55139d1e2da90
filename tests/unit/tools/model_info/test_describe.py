"""The plan of a model against what loading it really makes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from held_memory import memory, tensors_held
from nxdi.errors import BucketError
from nxdi.tools.model_info import ModelInfo, describe_model
from quantized_folders import KINDS, save_quantized
from tiny_models import COMPILED, FAMILIES, load_app, make_app, save_tiny, tiny_hf_model

ODD: dict[str, Any] = {  # heads, vocabulary and sizes that divide by no number of ranks
    "hidden_size": 60,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "vocab_size": 89,
}
SHORT: dict[str, Any] = {"seq_len": 32, "max_context_length": 16, "batch_size": 2}


def save(tmp_path: Path, family: str = "llama", dtype: str = "float32", **overrides: Any) -> Path:
    model = tiny_hf_model(family, **overrides).to(getattr(torch, dtype))
    return save_tiny(model, tmp_path / "model")


def check_memory(folder: Path, **options: Any) -> ModelInfo:
    """Compare the estimate with the tensors of the loaded model, rank by rank."""
    app = load_app(folder, **{**SHORT, **options})
    info = describe_model(make_app(folder, **{**SHORT, **options}))
    ranks = app.runner.executables
    assert len(info.weight_bytes) == len(ranks)
    for rank, estimate in zip(ranks, info.weight_bytes, strict=True):
        caches = memory(rank.caches)
        weights = memory(tensors_held(rank)) - caches
        assert abs(estimate - weights) <= 0.05 * weights
        assert info.cache_bytes == caches
    return info


@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_of_each_family(family: str, tp_degree: int, tmp_path: Path) -> None:
    check_memory(save(tmp_path, family), tp_degree=tp_degree)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("family", "tp_degree"), [("qwen2", 1), ("mistral", 2)])
def test_memory_of_compiled_graphs(family: str, tp_degree: int, tmp_path: Path) -> None:
    info = check_memory(save(tmp_path, family), **COMPILED, tp_degree=tp_degree)
    assert info.backend == "cpu"
    assert len(info.weight_bytes) == tp_degree


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(
    ("in_file", "torch_dtype"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tp_degree": 2},
        {"tp_degree": 4},
        {"tp_degree": 2, "vocab_parallel": True},
        {"save_sharded_checkpoint": True},
    ],
    ids=str,
)
def test_memory(
    options: dict[str, Any], in_file: str, torch_dtype: str, is_tied: bool, tmp_path: Path
) -> None:
    folder = save(tmp_path, "llama", in_file, tie_word_embeddings=is_tied, **ODD)
    check_memory(folder, torch_dtype=torch_dtype, **options)


def test_memory_needs_no_weights(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama", "bfloat16", tie_word_embeddings=True)
    with_weights = describe_model(make_app(folder, **SHORT))
    (folder / "model.safetensors").unlink()
    assert describe_model(make_app(folder, **SHORT)) == with_weights


def test_parameters_are_those_of_transformers(tmp_path: Path) -> None:
    for is_tied in (False, True):
        model = tiny_hf_model("llama", tie_word_embeddings=is_tied, **ODD)
        folder = save_tiny(model, tmp_path / str(is_tied))
        for tp_degree in (1, 4):
            info = describe_model(make_app(folder, tp_degree=tp_degree, **SHORT))
            assert info.num_parameters == model.num_parameters()


def test_notes_on_what_is_padded(tmp_path: Path) -> None:
    info = describe_model(make_app(save(tmp_path, **ODD), tp_degree=4, **SHORT))
    text = "\n".join(info.notes)
    assert "5 heads become 8, with 3 of zeros" in text
    assert "lm_head.weight: 89 is padded with zeros to 92" in text
    folder = save_tiny(tiny_hf_model("llama"), tmp_path / "even")
    text = "\n".join(describe_model(make_app(folder, tp_degree=4, **SHORT)).notes)
    assert "2 heads become 4, with 2 copies" in text
    assert "zeros to 100" in text  # the vocabulary of 97
    assert describe_model(make_app(folder, **SHORT)).notes == ()


def test_notes_on_tied_embeddings(tmp_path: Path) -> None:
    folder = save(tmp_path, tie_word_embeddings=True)
    (note,) = describe_model(make_app(folder, **SHORT)).notes
    assert note == "embed_tokens.weight and lm_head.weight are tied and share memory"
    for options in ({"torch_dtype": "bfloat16"}, {"save_sharded_checkpoint": True}):
        (note,) = describe_model(make_app(folder, **SHORT, **options)).notes
        assert note.endswith("are separate copies in memory")


@pytest.mark.parametrize(
    ("family", "note"),
    [
        ("mistral", "2 of 2 layers keep the keys and values of the newest 24 tokens only"),
        ("llama4", "1 of 2 layers keep the keys and values of one chunk of 20 tokens only"),
    ],
)
def test_notes_on_rolling_caches(family: str, note: str, tmp_path: Path) -> None:
    info = describe_model(make_app(save(tmp_path, family), **SHORT))
    assert info.notes == (note,)
    assert info.caches[0].shape[2] < 32


def test_notes_on_blocks(saved: Path) -> None:
    options = {**SHORT, "is_block_kv_layout": True, "pa_block_size": 8}
    (note,) = describe_model(make_app(saved, **options)).notes
    assert note == "pa_num_blocks=8 of 8 tokens, which hold 2.0 sequences of max_length=32"
    info = describe_model(make_app(saved, **options, kv_cache_memory_bytes=100_000))
    assert info.notes == (
        "pa_num_blocks=23 of 8 tokens, which hold 5.8 sequences of max_length=32",
    )
    assert info.cache_bytes == 24 * 4096


def test_graphs_are_the_planned_ones(saved: Path) -> None:
    app = make_app(saved, seq_len=300, enable_bucketing=True, max_context_length=128)
    info = describe_model(app)
    assert [graph.name for graph in info.graphs] == [spec.name for spec in app.plan.graphs]
    assert info.graphs[0].inputs["input_ids"] == (1, 128)
    assert info.graphs[-1].inputs == {
        "input_ids": (1, 1),
        "position_ids": (1, 1),
        "seq_ids": (1,),
    }
    assert info.graphs[-1].length == 300
    assert info.graphs[-1].outputs == ("logits",)


def test_options_without_effect_are_named(saved: Path) -> None:
    info = describe_model(make_app(saved, **SHORT, fused_qkv=True))
    assert [(option.name, option.value) for option in info.no_op_options] == [("fused_qkv", True)]
    assert "stay separate" in info.no_op_options[0].reason
    assert describe_model(make_app(saved, **SHORT)).no_op_options == ()


def test_requests_are_planned(saved: Path) -> None:
    info = describe_model(make_app(saved, **SHORT), [(10, 5, 1), (3, 2, 2)])
    assert [request.num_rows for request in info.requests] == [1, 2]
    with pytest.raises(BucketError):
        describe_model(make_app(saved, **SHORT), [(10, 500, 1)])


def test_the_plan_is_plain_data(saved: Path) -> None:
    app = make_app(
        saved, **SHORT, torch_dtype="bfloat16", weights_to_skip_layout_optimization=["x"]
    )
    data = json.loads(json.dumps(asdict(describe_model(app, [(4, 4, 1)]))))
    assert data["torch_dtype"] == "bfloat16"
    assert data["architecture"] == "NeuronLlamaForCausalLM"
    assert data["no_op_options"][0]["value"] == ["x"]


def test_kernels_of_each_graph(saved: Path) -> None:
    app = make_app(saved, backend="cpu", **SHORT)
    info = describe_model(app)
    kernels = {kernel.op: kernel for kernel in info.graphs[0].kernels}
    assert kernels.keys() == {"attend", "float32 linear"}
    assert all(isinstance(kernel.declined, dict) for kernel in kernels.values())
    assert kernels["attend"].layers == ("layers.0.self_attn", "layers.1.self_attn")
    assert not kernels["attend"].is_reference


BLOCKS = {"quantization_type": "blockwise_symmetric", "quantization_block_size": [1, 16]}


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"quantization_type": "per_tensor_symmetric"}, "15 weights are kept as int8, with one"),
        ({"quantization_type": "per_channel_symmetric"}, "one scale for each row"),
        ({"quantization_dtype": "int4", **BLOCKS}, "one scale for each 1 x 16 values"),
    ],
)
def test_quantized_weights(options: dict[str, Any], note: str, tmp_path: Path) -> None:
    folder = save(tmp_path)
    plain = describe_model(make_app(folder, **SHORT))
    info = check_memory(folder, quantized=True, **options)
    assert info.num_parameters == plain.num_parameters
    assert max(info.weight_bytes) < 0.35 * max(plain.weight_bytes)
    assert note in info.notes[0]


def test_quantized_weights_that_are_widened(tmp_path: Path) -> None:
    save_quantized(tiny_hf_model("llama"), tmp_path / "model", KINDS["fp8"], is_projection)
    info = check_memory(tmp_path / "model")
    assert info.notes[0] == "weights of f8e4m3 are widened when they are loaded (quantized=False)"
    kept = check_memory(
        tmp_path / "model",
        quantized=True,
        modules_to_not_convert=["lm_head"],
        **FP8,
    )
    assert "14 weights are kept as f8e4m3, with one scale for each 16 x 8 values" in kept.notes
    assert any("plain in the checkpoint" in note for note in kept.notes)


def is_projection(module: str) -> bool:
    return module.endswith("proj")


FP8 = {
    "quantization_type": "blockwise_symmetric",
    "quantization_dtype": "f8e4m3",
    "quantization_block_size": [16, 8],
}
