"""Static scales of activations: measured on a text, stored with the weights, and used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nxdi
from nxdi.errors import ConfigError, ShapeError
from nxdi.models.auto import default_artifact_dir
from nxdi.tools.quantization import calibrate_folder, quantize_folder
from tiny_models import save_tiny, tiny_hf_model
from tolerances import LOGITS_FP32

TOKENS = torch.randint(0, 97, (64,), generator=torch.Generator().manual_seed(2)).tolist()
IDS = torch.tensor([TOKENS[:20]])


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    plain = save_tiny(tiny_hf_model("llama", tie_word_embeddings=True), folder / "plain")
    quantize_folder(plain, folder / "int8", quantization_type="per_channel_symmetric")
    return folder / "int8"


@pytest.fixture(scope="module")
def static_dir(weights_dir: Path) -> Path:
    folder = weights_dir.parent / "static"
    largest = calibrate_folder(weights_dir, folder, TOKENS)
    assert len(largest) == 2 * 7 + 1
    return folder


def logits(folder: Path, **options: Any) -> torch.Tensor:
    asked = {"backend": "eager", "seq_len": 64, "torch_dtype": "float32", **options}
    found = nxdi.AutoModelForCausalLM.from_pretrained(folder, **asked)(IDS).logits
    assert found is not None
    return found


def test_the_scales_are_those_of_the_largest_inputs(weights_dir: Path, static_dir: Path) -> None:
    stored = load_file(static_dir / "model.safetensors")
    scales = {name: float(t) for name, t in stored.items() if name.endswith(".input_scale")}
    with torch.no_grad():
        reference = tiny_hf_model("llama", tie_word_embeddings=True)
        hidden = reference.model.embed_tokens(torch.tensor([TOKENS]))
        entering = reference.model.layers[0].input_layernorm(hidden).abs().max()
    # What enters the first layer depends on the embedding alone, which is quantized as well.
    name = "layers.0.self_attn.qkv_proj.q_proj.input_scale"
    assert scales[name] == pytest.approx(float(entering) / 127, rel=0.02)
    assert all(scale > 0 for scale in scales.values())


def test_the_folder_loads_like_any_other(weights_dir: Path, static_dir: Path) -> None:
    config = json.loads((static_dir / "config.json").read_text())["quantization_config"]
    assert config["activation_quantization_type"] == "static"
    plain, found = logits(weights_dir), logits(static_dir)
    assert LOGITS_FP32 < (found - plain).abs().max() < 0.2 * plain.abs().max()
    torch.testing.assert_close(logits(static_dir, tp_degree=2), found, rtol=0, atol=LOGITS_FP32)
    with pytest.raises(ConfigError, match="was quantized with"):
        logits(static_dir, activation_quantization_type="dynamic")


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_the_cpu_backend_multiplies_integers(static_dir: Path) -> None:
    options = {"max_context_length": 32, "strict_kernels": True}
    model = nxdi.AutoModelForCausalLM.from_pretrained(
        static_dir, backend="cpu", seq_len=64, torch_dtype="float32", **options
    )
    found = model(IDS).logits
    torch.testing.assert_close(found, logits(static_dir), rtol=0, atol=100 * LOGITS_FP32)
    manifest = json.loads((default_artifact_dir(model) / "manifest.json").read_text())
    kernels = {(kernel["op"], kernel["chosen"]): kernel for kernel in manifest["kernels"]}
    assert len(kernels["int8 x int8 linear", "nxdi_cpu::int8_linear"]["layers"]) == 2 * 7 + 1


def test_what_cannot_be_calibrated_is_refused(weights_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="1 tokens are too few"):
        calibrate_folder(weights_dir, tmp_path / "out", TOKENS[:1])
    with pytest.raises(ConfigError, match="is not empty"):
        calibrate_folder(weights_dir, weights_dir, TOKENS)
    plain = save_tiny(tiny_hf_model("llama"), tmp_path / "plain")
    with pytest.raises(ConfigError, match="no weights of 8 bits"):
        calibrate_folder(plain, tmp_path / "out", TOKENS)
