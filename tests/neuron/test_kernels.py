"""A model whose projections are all computed by kernels, through the double."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron.nxd_double import Double
from neuron.support import PROMPTS, generate, loaded, neuron_app
from nxdi.errors import UnsupportedError
from nxdi.kernels.neuron import op
from tiny_models import save_tiny, tiny_hf_model
from tolerances import NKI

ASKED = {
    "mlp_kernel_enabled": True,
    "qkv_kernel_enabled": True,
    "out_proj_kernel_enabled": True,
    "attn_kernel_enabled": True,
    "attn_tkg_nki_kernel_enabled": True,
}
SIXTEEN: dict[str, Any] = {"torch_dtype": "bfloat16", "tp_degree": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_hf_model("qwen2", hidden_size=128, num_hidden_layers=1)  # biases of q, k and v
    return save_tiny(model, tmp_path / "model")


def test_kernels_in_all_graphs(
    sdk: Double, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = loaded(folder, tmp_path / "plain", **SIXTEEN)(PROMPTS).logits
    monkeypatch.setattr(op, "missing_compiler", lambda: None)
    app = loaded(folder, tmp_path / "artifact", **SIXTEEN, **ASKED)
    generate(app, tokens=3)
    app.reset()
    logits = app(PROMPTS).logits
    assert expected is not None
    assert logits is not None
    bound = 2 * NKI[torch.bfloat16] * float(expected.abs().max())
    torch.testing.assert_close(logits, expected, rtol=0, atol=bound)
    manifest = json.loads((tmp_path / "artifact" / "manifest.json").read_text())
    text = json.dumps(manifest["kernels"])
    for name in ("mlp_decode", "qkv", "attention_output", "attention_prefill", "attention_decode"):
        assert f"nxdi_nki::{name}" in text


def test_a_kernel_without_the_sdk_s_compiler_is_an_error(
    sdk: Double, folder: Path, tmp_path: Path
) -> None:
    app = neuron_app(folder, out_proj_kernel_enabled=True)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.self_attn\.o_proj cannot run"):
        app.compile(tmp_path / "artifact", progress=False)
