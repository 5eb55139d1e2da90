"""Tokenizer files are checked before transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from nxdi.cli.tokenizer_files import check_tokenizer_files
from nxdi.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    byte_tokenizer.save_pretrained(tmp_path)
    return tmp_path


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_sound_folder(folder: Path) -> None:
    check_tokenizer_files(folder)
    normalizers = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
    ]
    change(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": normalizers})
    change(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    check_tokenizer_files(folder)


def test_a_vocabulary_that_is_a_list(folder: Path) -> None:
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]}
    change(folder / "tokenizer.json", model=model)
    check_tokenizer_files(folder)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "pipeline", "AutoModel", "Trainer"])
def test_a_class_that_is_no_tokenizer(folder: Path, name: str) -> None:
    change(folder / "tokenizer_config.json", tokenizer_class=name)
    with pytest.raises(ConfigError, match=f"tokenizer_class='{name}' is no tokenizer"):
        check_tokenizer_files(folder)


def test_limits_are_limits(folder: Path) -> None:
    settings, rules = folder / "tokenizer_config.json", folder / "tokenizer.json"
    change(settings, extra_special_tokens=["x"] * 4096)
    change(rules, normalizer={"type": "Prepend", "prepend": "x" * 4096})
    change(rules, added_tokens=[{"id": 2**24, "content": "x"}])
    check_tokenizer_files(folder)
    change(rules, normalizer={"type": "Prepend", "prepend": "x" * 4097})
    with pytest.raises(ConfigError, match="can make a text 4097 times as long"):
        check_tokenizer_files(folder)
    change(rules, normalizer=None, added_tokens=[{"id": 2**24 + 1, "content": "x"}])
    with pytest.raises(ConfigError, match="token id 16777217 is more than 16777216"):
        check_tokenizer_files(folder)
    change(rules, added_tokens=[], post_processor={"single": [{"Sequence": {"id": "A"}}] * 257})
    with pytest.raises(ConfigError, match="have 257 steps"):
        check_tokenizer_files(folder)
    change(settings, extra_special_tokens=["x"] * 4097)
    with pytest.raises(ConfigError, match="holds 4097 tokens, more than 4096"):
        check_tokenizer_files(folder)
