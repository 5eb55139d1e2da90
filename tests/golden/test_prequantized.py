"""Folders that other programs have quantized: logits of what their weights stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import nxdi
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.modules.quantization import quantized_names
from nxdi.types import Phase
from quantized_folders import KINDS, compressed, save_mxfp4, save_quantized
from tiny_models import VOCAB_SIZE, tiny_hf_model
from tolerances import LOGITS_FP32

OPTIONS: dict[str, Any] = {
    "backend": "eager",
    "seq_len": 32,
    "max_context_length": 16,
    "torch_dtype": "float32",
}
PROMPT = torch.arange(1, 12)[None] * 7 % VOCAB_SIZE
NEXT = torch.arange(2, 5)[:, None, None] * 11 % VOCAB_SIZE
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 96},
    "mixtral": {"intermediate_size": 96},
    "qwen3_moe": {"moe_intermediate_size": 48, "mlp_only_layers": []},
    "deepseek": {"moe_intermediate_size": 48},
}


def load(folder: Path, **options: Any) -> NeuronBaseForCausalLM:
    return nxdi.AutoModelForCausalLM.from_pretrained(folder, **{**OPTIONS, **options})


def steps(app: NeuronBaseForCausalLM) -> Tensor:
    """The logits after a prompt and after three tokens."""
    found = [app(PROMPT).logits]
    for place, token in enumerate(NEXT, start=PROMPT.shape[1]):
        found.append(app(token, position_ids=torch.tensor([[place]])).logits)
    return torch.stack([logits[0, -1] for logits in found if logits is not None])


def check(app: NeuronBaseForCausalLM, reference: PreTrainedModel) -> None:
    with torch.no_grad():
        logits = reference(torch.cat([PROMPT, NEXT[:, 0].T], 1)).logits[0, -4:]
    torch.testing.assert_close(steps(app), logits, rtol=0, atol=LOGITS_FP32)


def is_linear(module: str) -> bool:
    return module.endswith("proj")


def is_expert(module: str) -> bool:
    return ".experts." in module


@pytest.mark.parametrize("kind", KINDS)
def test_llama(kind: str, tmp_path: Path) -> None:
    model = tiny_hf_model("llama", **MODELS["llama"])
    reference = save_quantized(model, tmp_path / "model", KINDS[kind], is_linear)
    app = load(tmp_path / "model")
    assert len(quantized_names(app.build(Phase.DECODE))) == 2 * 7
    check(app, reference)
    with pytest.raises(AssertionError, match="not close"):
        check(app, model)  # as it was before
    check(load(tmp_path / "model", tp_degree=2), reference)


def test_quantized_inputs(tmp_path: Path) -> None:
    """int8 with int8: each token of a layer's input is rounded to 127 steps of its largest."""
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    kind = compressed("int-quantized", inputs, num_bits=8, type="int", strategy="channel")
    model = tiny_hf_model("llama", **MODELS["llama"])
    reference = save_quantized(model, tmp_path / "model", kind, is_linear)
    app = load(tmp_path / "model")
    assert app.neuron_config.activation_quantization_type == "dynamic"
    with pytest.raises(AssertionError, match="not close"):
        check(app, reference)
    for name, module in reference.named_modules():
        if is_linear(name):
            module.register_forward_pre_hook(lambda _, args: (rounded(args[0]),))
    check(app, reference)


def rounded(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


@pytest.mark.parametrize("family", ["mixtral", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["int8 channel", "int4 group", "fp8"])
def test_experts(family: str, kind: str, tmp_path: Path) -> None:
    model = tiny_hf_model(family, **MODELS[family])
    reference = save_quantized(model, tmp_path / "model", KINDS[kind], is_expert)
    app = load(tmp_path / "model")
    assert len(quantized_names(app.build(Phase.DECODE))) == 2 * 2
    check(app, reference)
    check(load(tmp_path / "model", tp_degree=2), reference)
    check(load(tmp_path / "model", tp_degree=2, moe_ep_degree=2), reference)


@pytest.mark.parametrize("options", [{}, {"tp_degree": 2}, {"tp_degree": 2, "moe_ep_degree": 2}])
def test_deepseek(options: dict[str, Any], tmp_path: Path) -> None:
    """What makes keys and values of latents is multiplied from both sides, and so is widened."""
    model = tiny_hf_model("deepseek", **MODELS["deepseek"])
    reference = save_quantized(model, tmp_path / "model", KINDS["fp8"], is_deepseek_fp8)
    app = load(tmp_path / "model", **options)
    assert {"layers.0.self_attn.kv_b_proj", "layers.1.self_attn.kv_b_proj"} <= {
        *app.neuron_config.modules_to_not_convert
    }
    names = quantized_names(app.build(Phase.DECODE))
    assert "layers.0.self_attn.o_proj.weight" in names
    assert "layers.1.mlp.experts.down_proj" in names
    check(app, reference)


def is_deepseek_fp8(module: str) -> bool:
    return module.endswith(("proj", "proj_with_mqa")) or is_expert(module)


@pytest.mark.parametrize("options", [{}, {"tp_degree": 2}, {"tp_degree": 2, "moe_ep_degree": 2}])
def test_gpt_oss(options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_hf_model("gpt_oss", intermediate_size=96)
    reference = save_mxfp4(model, tmp_path / "model")
    app = load(tmp_path / "model", **options)
    experts = app.rank_weights((0,))[0]["layers.0.mlp.experts.gate_up_proj"]
    assert experts.dtype is torch.uint8
    check(app, reference)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("kind", ["fp8", "int4 group", "float8 channel"])
def test_llama_compiled(kind: str, tmp_path: Path) -> None:
    model = tiny_hf_model("llama", **MODELS["llama"])
    reference = save_quantized(model, tmp_path / "model", KINDS[kind], is_linear)
    check(load(tmp_path / "model", backend="cpu"), reference)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_gpt_oss_compiled(tmp_path: Path) -> None:
    model = tiny_hf_model("gpt_oss", intermediate_size=96)
    reference = save_mxfp4(model, tmp_path / "model")
    check(load(tmp_path / "model", backend="cpu"), reference)


def test_gpt_oss_widened_when_it_is_loaded(tmp_path: Path) -> None:
    model = tiny_hf_model("gpt_oss", intermediate_size=96)
    reference = save_mxfp4(model, tmp_path / "model")
    for options in ({"quantized": False}, {"modules_to_not_convert": ["experts"]}):
        app = load(tmp_path / "model", **options)
        experts = app.rank_weights((0,))[0]["layers.0.mlp.experts.gate_up_proj"]
        assert experts.dtype is torch.float32
        check(app, reference)
