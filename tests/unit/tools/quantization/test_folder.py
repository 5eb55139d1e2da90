"""Quantized folders: written, loaded like any other, and refused where they do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nxdi
from nxdi.errors import ConfigError, UnsupportedError, WeightError
from nxdi.models.auto import default_artifact_dir
from nxdi.models.folder_options import with_folder_options
from nxdi.models.llama.modeling_llama import NeuronLlamaForCausalLM
from nxdi.models.registry import class_for_folder
from nxdi.modules.quantization import widen_state
from nxdi.tools.quantization import perplexity, quantize_folder
from nxdi.types import Phase
from tiny_models import make_app, save_tiny, tiny_hf_model
from tolerances import LOGITS_FP32

OPTIONS: dict[str, Any] = {"backend": "eager", "seq_len": 64, "torch_dtype": "float32"}
IDS = torch.tensor([[5, 9, 3, 71, 20]])
PER_CHANNEL = {"quantization_type": "per_channel_symmetric"}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tied = tiny_hf_model("llama", tie_word_embeddings=True)
    return save_tiny(tied, tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def quantized_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "model"
    quantize_folder(model_dir, folder, **PER_CHANNEL)
    return folder


def logits(folder: Path, **options: Any) -> torch.Tensor:
    model = nxdi.AutoModelForCausalLM.from_pretrained(folder, **{**OPTIONS, **options})
    found = model(IDS).logits
    assert found is not None
    return found


def test_a_quantized_folder_is_what_quantizing_at_load_gives(
    model_dir: Path, quantized_dir: Path
) -> None:
    at_load = logits(model_dir, quantized=True, **PER_CHANNEL)
    assert torch.equal(logits(quantized_dir), at_load)
    plain = logits(model_dir)
    assert not torch.equal(at_load, plain)
    assert (at_load - plain).abs().max() < 0.1 * plain.abs().max()


@pytest.mark.parametrize("family", ["phi3", "gpt2", "gpt_neox", "qwen3", "gemma3"])
def test_families_with_weights_of_other_names(family: str, tmp_path: Path) -> None:
    source = save_tiny(tiny_hf_model(family), tmp_path / "plain")
    quantize_folder(source, tmp_path / "quantized", **PER_CHANNEL)
    expected = logits(source, quantized=True, **PER_CHANNEL)
    assert torch.equal(logits(tmp_path / "quantized"), expected)


def test_ranks_share_what_was_quantized(model_dir: Path, quantized_dir: Path) -> None:
    one = logits(quantized_dir)
    for degree in (2, 4):
        torch.testing.assert_close(logits(quantized_dir, tp_degree=degree), one, rtol=0, atol=1e-4)


@pytest.mark.slow  # compiles
@pytest.mark.usefixtures("two_threads")
def test_the_cpu_backend_reads_the_bytes_as_they_are(quantized_dir: Path) -> None:
    model = nxdi.AutoModelForCausalLM.from_pretrained(
        quantized_dir,
        backend="cpu",
        seq_len=64,
        max_context_length=32,
        torch_dtype="float32",
        strict_kernels=True,
    )
    torch.testing.assert_close(model(IDS).logits, logits(quantized_dir), rtol=0, atol=1e-4)
    manifest = json.loads((default_artifact_dir(model) / "manifest.json").read_text())
    kernels = {(kernel["op"], kernel["chosen"]): kernel for kernel in manifest["kernels"]}
    assert kernels.keys() == {
        ("attend", "nxdi_cpu::attend_decode"),
        ("attend", "sdpa"),
        ("int8 linear", "nxdi_cpu::linear"),
    }
    assert not any(kernel["is_reference"] for kernel in kernels.values())
    assert kernels["attend", "sdpa"]["layers"] == ["layers.0.self_attn", "layers.1.self_attn"]
    linear = kernels["int8 linear", "nxdi_cpu::linear"]
    assert len(linear["layers"]) == 2 * 7 + 1
    assert "layers.1.mlp.down_proj" in linear["layers"]
    assert linear["refused"] == {"nxdi::onednn_linear": "fewer than 256 rows"}
    weights = model.rank_weights((0,))[0]
    assert weights["lm_head.weight"].dtype is torch.int8
    assert weights["lm_head.weight"].data_ptr() == weights["embed_tokens.weight"].data_ptr()


def test_the_report(model_dir: Path, tmp_path: Path) -> None:
    report = quantize_folder(
        model_dir, tmp_path / "out", modules_to_not_convert=["lm_head", "embed_tokens"]
    )
    names = [layer.name for layer in report.layers]
    assert len(names) == 2 * 7
    assert not any("lm_head" in name for name in names)
    assert 0 < report.worst.relative < 0.1
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert report.size_after == sum(tensor.nbytes for tensor in stored.values())
    assert report.size_after < report.size_before
    assert {str(tensor.dtype) for tensor in stored.values()} == {"torch.int8", "torch.float32"}


def test_nxdis_way_to_save(model_dir: Path, quantized_dir: Path, tmp_path: Path) -> None:
    config_cls = NeuronLlamaForCausalLM.get_config_cls()
    options = {**OPTIONS, **PER_CHANNEL, "quantized": True}
    neuron = nxdi.NeuronConfig(**options, quantized_checkpoints_path=str(tmp_path / "saved"))
    config = config_cls.from_pretrained(model_dir, neuron)
    NeuronLlamaForCausalLM.save_quantized_state_dict(model_dir, config)
    found = logits(model_dir, **options, quantized_checkpoints_path=str(tmp_path / "saved"))
    assert torch.equal(found, logits(quantized_dir))
    with pytest.raises(ConfigError, match="quantized_checkpoints_path"):
        NeuronLlamaForCausalLM.save_quantized_state_dict(
            model_dir, config_cls.from_pretrained(model_dir, nxdi.NeuronConfig(**options))
        )


def test_perplexity_is_that_of_the_reference(model_dir: Path) -> None:
    model = nxdi.AutoModelForCausalLM.from_pretrained(
        model_dir, **{**OPTIONS, "seq_len": 16}, batch_size=2
    )
    tokens = torch.randint(0, 97, (67,), generator=torch.Generator().manual_seed(1)).tolist()
    reference = tiny_hf_model("llama", tie_word_embeddings=True)
    rows = torch.tensor(tokens[:64]).view(4, 16)
    with torch.no_grad():
        scores = reference(rows).logits.log_softmax(-1)
    taken = scores[:, :-1].gather(2, rows[:, 1:, None])
    expected = math.exp(-float(taken.mean()))
    assert math.isclose(perplexity(model, tokens), expected, rel_tol=1e-4)
    with pytest.raises(nxdi.NxdiError, match="too few"):
        perplexity(model, [1, 2, 3])


def test_what_contradicts_the_folder_is_refused(
    model_dir: Path, quantized_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="was quantized with"):
        logits(quantized_dir, quantization_type="per_tensor_symmetric")
    with pytest.raises(ConfigError, match="not empty"):
        quantize_folder(model_dir, quantized_dir)
    config = json.loads((model_dir / "config.json").read_text())
    foreign = save_tiny(tiny_hf_model("llama"), tmp_path / "foreign")
    config["quantization_config"] = {"quant_method": "awq"}
    (foreign / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="awq"):
        logits(foreign)


def test_missing_scales_are_listed(quantized_dir: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    folder = shutil.copytree(quantized_dir, tmp_path / "cut")
    tensors = load_file(folder / "model.safetensors")
    del tensors["layers.1.mlp.down_proj.scale"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightError, match=r"layers\.1\.mlp\.down_proj\.scale"):
        logits(folder)
    (folder / "tied_weights.json").unlink()
    with pytest.raises(WeightError, match="tied_weights"):
        logits(folder)


BLOCKS: dict[str, dict[str, Any]] = {
    "int8": {"quantization_block_size": [16, 8]},
    "int4": {"quantization_block_size": [1, 16]},
    "f4e2m1": {"quantization_block_size": [1, 32], "quantization_scale_dtype": "f8e8m0"},
}
EXPERTS = {
    **{
        f"{dtype} blocks": {
            "quantization_type": "blockwise_symmetric",
            "quantization_dtype": dtype,
            **size,
        }
        for dtype, size in BLOCKS.items()
    },
    "per tensor": {"quantization_type": "per_tensor_symmetric"},
    "per channel": PER_CHANNEL,
    "expert-wise": {
        "quantization_type": "expert_wise_per_channel_symmetric",
        "quantization_dtype": "f8e4m3",
    },
}


@pytest.mark.parametrize(
    ("family", "kind"), [*(("mixtral", kind) for kind in EXPERTS), ("qwen3_moe", "expert-wise")]
)
def test_mixtures_of_experts(family: str, kind: str, tmp_path: Path) -> None:
    """On any ranks the same, and what the weights stand for."""
    source = save_tiny(tiny_hf_model(family), tmp_path / "plain")
    folder = tmp_path / "quantized"
    report = quantize_folder(source, folder, **EXPERTS[kind])
    assert sum(layer.name.endswith("experts.down_proj") for layer in report.layers) > 0
    assert 0 < report.worst.relative < 0.2
    one = logits(folder)
    for options in ({"tp_degree": 2}, {"tp_degree": 2, "moe_ep_degree": 2}):
        torch.testing.assert_close(logits(folder, **options), one, rtol=0, atol=LOGITS_FP32)
    torch.testing.assert_close(widened_logits(folder, source), one, rtol=0, atol=LOGITS_FP32)


def widened_logits(quantized: Path, source: Path) -> torch.Tensor:
    """Of the model in `source` with the weights that those of a quantized folder stand for."""
    model_cls = class_for_folder(source)
    app = make_app(quantized, **with_folder_options(model_cls, quantized, OPTIONS))
    scheme = app.weight_quantization()
    assert scheme is not None
    plain = make_app(source, **OPTIONS)
    found = widen_state(plain.build(Phase.DECODE), app.get_state_dict(), scheme)
    plain.get_state_dict = lambda: dict(found)  # type: ignore[method-assign]  # in place of a folder
    plain.compile(quantized / "widened", progress=False)
    plain.load(quantized / "widened")
    answer = plain(IDS).logits
    assert answer is not None
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    return answer


def test_a_quantized_folder_is_quantized_otherwise(quantized_dir: Path, tmp_path: Path) -> None:
    """From what its weights stand for."""
    quantize_folder(quantized_dir, tmp_path / "again", **PER_CHANNEL)
    torch.testing.assert_close(
        logits(tmp_path / "again"), logits(quantized_dir), rtol=0, atol=LOGITS_FP32
    )
    report = quantize_folder(quantized_dir, tmp_path / "four", quantization_dtype="int4")
    assert report.size_after < 0.2 * report.size_before


def test_float8_that_the_device_does_not_have(model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    quantize_folder(model_dir, folder, quantization_dtype="f8e4m3", **PER_CHANNEL)
    options = with_folder_options(class_for_folder(folder), folder, {"target": "trn2"})
    app = make_app(folder, **{**options, "backend": "neuron"})
    with pytest.raises(WeightError, match=r"up to 448, and on this device float8_e4m3 ends at 240"):
        app.checked_weights()
