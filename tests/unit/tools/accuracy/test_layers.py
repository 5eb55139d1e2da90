"""What `find_divergence` asks of a model; golden/test_check_faults.py has what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nxdi.errors import ConfigError
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.tools.accuracy.layers import find_divergence
from nxdi.tools.accuracy.report import random_prompts
from nxdi.tools.accuracy.tensors import replace_tensors
from tiny_models import load_app

PROMPTS = random_prompts(2, 9, 97)


def test_a_right_model_has_none(app: NeuronBaseForCausalLM) -> None:
    report = find_divergence(app, PROMPTS, 3)
    assert report.divergence is None
    assert {"embed_tokens", "layers.0.self_attn", "layers.1.mlp", "norm", "lm_head"} <= set(
        report.modules
    )


def test_the_line_says_all(app: NeuronBaseForCausalLM) -> None:
    def late(x: torch.Tensor) -> torch.Tensor:
        return x if x.shape[1] > 1 else 1.1 * x  # in decode steps only

    with replace_tensors(app, {"layers.1.mlp": late}):
        found = find_divergence(app, PROMPTS, 3).divergence
    assert found is not None
    assert (found.module, found.layer, found.token, found.phase) == ("layers.1.mlp", 1, 1, "decode")
    assert (found.row, found.position) == (0, 9)
    assert found.error == pytest.approx(0.1, rel=1e-3)
    assert str(found) == (
        "generated token 1 (decode, row 0, position 9): layers.1.mlp introduces an error of 0.1, "
        "tolerance 2e-05, seen in what layers.1.mlp returns"
    )


PIECES: dict[str, dict[str, Any]] = {
    "rows": {"windowed_context_encoding_size": 4},
    "rows, one prompt at a time": {"windowed_context_encoding_size": 4, "ctx_batch_size": 1},
    "blocks": {
        **{"is_block_kv_layout": True, "pa_block_size": 4},
        **{"max_context_length": 4, "chunked_prefill_config": {}},
    },
}


@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize("pieces", PIECES)
def test_prompts_in_pieces(pieces: str, tp_degree: int, folder: Path) -> None:
    options = {"seq_len": 32, "max_context_length": 16, "batch_size": 2, "tp_degree": tp_degree}
    model = load_app(folder, **{**options, **PIECES[pieces]})
    report = find_divergence(model, PROMPTS, 3)
    assert report.divergence is None
    assert {"layers.1.mlp", "lm_head"} <= set(report.modules)


def test_a_piece_is_named_by_its_place_in_the_prompt(folder: Path) -> None:
    """Prompts of 9 and 8 tokens: pieces of 4 of each row in turn, and the ninth token."""
    options = {"seq_len": 32, "batch_size": 2, "ctx_batch_size": 1}
    model = load_app(folder, windowed_context_encoding_size=4, **options)
    for number, row, position in ((0, 0, 0), (1, 1, 0), (2, 0, 4), (3, 1, 4), (4, 0, 8)):
        calls = iter(range(100))

        def wrong_once(
            x: torch.Tensor, calls: Iterator[int] = calls, number: int = number
        ) -> torch.Tensor:
            return 1.1 * x if next(calls) == number else x

        with replace_tensors(model, {"layers.1.mlp": wrong_once}):
            found = find_divergence(model, PROMPTS, 3).divergence
        assert found is not None
        assert (found.module, found.token) == ("layers.1.mlp", 0)
        assert found.phase == ("prefill" if number < 2 else "extend")
        assert (found.row, found.position) == (row, position)


def test_an_ignored_module_is_judged_by_what_follows(app: NeuronBaseForCausalLM) -> None:
    with replace_tensors(app, {"layers.1.mlp": lambda x: 1.1 * x}):
        found = find_divergence(app, PROMPTS, 2, ignore=["layers.*.mlp"]).divergence
    assert found is not None
    assert (found.module, found.seen) == ("layers.1", "what layers.1 returns")
    with replace_tensors(app, {"layers.1.mlp.gate_proj": lambda x: x.clone()}):
        report = find_divergence(app, PROMPTS, 2, ignore=["layers.*.mlp"])
    assert report.divergence is None
    assert "layers.1.mlp" not in report.modules
    with pytest.raises(ConfigError, match="no module 'nothing'"):
        find_divergence(app, PROMPTS, 2, ignore=["nothing"])


def test_the_tolerance_may_be_given(app: NeuronBaseForCausalLM) -> None:
    with replace_tensors(app, {"norm": lambda x: 1.01 * x}):
        assert find_divergence(app, PROMPTS, 2).divergence is not None
        assert find_divergence(app, PROMPTS, 2, tolerance=0.02).divergence is None


@pytest.mark.parametrize(
    "options",
    [{"torch_dtype": "bfloat16"}, {"tp_degree": 2, "sequence_parallel_enabled": True}],
)
def test_other_models_are_refused(options: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    model = load_app(folder, seq_len=32, **options)
    with pytest.raises(ConfigError, match="torch_dtype='float32', sequence_parallel_enabled=False"):
        find_divergence(model, PROMPTS, 2)
