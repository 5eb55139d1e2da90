from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nxdi.errors import ConfigError, ShapeError
from nxdi.generation.speculation import DraftModel
from nxdi.generation.speculation.compatible import check_compatible
from tiny_models import make_app, save_tiny, tiny_hf_model

ROWS = {"batch_size": 2, "seq_len": 32}


def folder_of(tmp_path: Path, name: str, **overrides: Any) -> Path:
    return save_tiny(tiny_hf_model("llama", **overrides), tmp_path / name)


def test_a_draft_of_the_same_family_is_accepted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "both")
    check_compatible(make_app(folder, speculation_length=4, **ROWS), make_app(folder, **ROWS))


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    target = make_app(folder_of(tmp_path, "target"), **ROWS)
    draft = make_app(folder_of(tmp_path, "draft", vocab_size=51), **ROWS)
    with pytest.raises(ConfigError, match="the draft model has vocab_size=51, the target 97"):
        check_compatible(target, draft)


def test_fewer_rows_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "both")
    with pytest.raises(ConfigError, match="the draft model has 1 rows, the target 2"):
        check_compatible(make_app(folder, **ROWS), make_app(folder, seq_len=32))


def test_a_window_that_forgets_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("mistral", sliding_window=8), tmp_path / "both")
    target = make_app(folder, speculation_length=4, **ROWS)
    with pytest.raises(ConfigError, match="compile it with the target's speculation_length=4"):
        check_compatible(target, make_app(folder, **ROWS))
    check_compatible(target, make_app(folder, speculation_length=4, **ROWS))


def test_a_pool_too_small_for_a_draft_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "both")
    draft = make_app(folder, is_block_kv_layout=True, pa_block_size=8, pa_num_blocks=5, **ROWS)
    with pytest.raises(ShapeError, match="need 8 blocks, but pa_num_blocks=5"):
        DraftModel(draft)
