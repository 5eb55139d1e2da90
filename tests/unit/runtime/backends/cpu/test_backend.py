"""strict_kernels: a compile that would leave a layer to a reference ends with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nxdi.errors import UnsupportedError
from nxdi.runtime.backends.cpu import compiler
from tiny_models import make_app, save_tiny, tiny_hf_model


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "llama",
            {"quantized": True, "quantization_dtype": "f8e4m3"},
            r"layers\.1\.mlp\.up_proj: float8_e4m3fn linear by the reference aten::linear .*float8",
        ),
        ("gpt_oss", {}, r"layers\.0\.self_attn: attend by the reference explicit .*sinks"),
    ],
)
def test_strict_kernels_refuse_a_reference(
    family: str,
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "piece/data/aotinductor/model").mkdir(parents=True)  # as the compiler writes it
    (tmp_path / "piece/data/aotinductor/model/x.so").touch()
    monkeypatch.setattr(compiler, "get_or_build", lambda key, build: tmp_path)
    saved = save_tiny(tiny_hf_model(family), tmp_path / "model")
    app = make_app(saved, backend="cpu", seq_len=32, strict_kernels=True, **options)
    with pytest.raises(UnsupportedError, match=message):
        app.compile(tmp_path / "artifact", progress=False)
    assert not (tmp_path / "artifact").exists()
