"""What speculation is worth: refusals; `nxdi bench --speculation` tests the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from nxdi.errors import ConfigError
from nxdi.generation.speculation import PromptLookup
from nxdi.tools.benchmark.speculation import measure_speculation
from tiny_models import load_app, load_fused, save_tiny, tiny_hf_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tiny_hf_model("llama"), tmp_path_factory.mktemp("bench") / "tiny")


def test_there_must_be_a_plain_side_and_another(folder: Path) -> None:
    plain, fused = load_app(folder, seq_len=32), load_fused(folder, folder, seq_len=32)
    for model, without in ((plain, None), (fused, None), (fused, fused), (plain, plain)):
        with pytest.raises(ConfigError, match="one to which nobody does"):
            measure_speculation(model, None, [[1, 2]], 4, 1, without)
    report = measure_speculation(fused, None, [[1, 2]], 4, 1, plain)
    assert report.num_tokens == 4


def test_there_must_be_prompts_and_runs(folder: Path) -> None:
    app = load_app(folder, seq_len=32, speculation_length=3)
    with pytest.raises(ConfigError, match="0 prompts in 1 runs measure nothing"):
        measure_speculation(app, PromptLookup(), [], 4, 1)
    with pytest.raises(ConfigError, match="1 prompts in 0 runs measure nothing"):
        measure_speculation(app, PromptLookup(), [[1]], 4, 0)
