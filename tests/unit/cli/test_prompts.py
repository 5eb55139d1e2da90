"""Token ids of texts and conversations, and what happens when a tokenizer fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from nxdi.cli.prompts import encode_chat, encode_text, explain_tokenizer_errors, render_chat
from nxdi.errors import ConfigError

FOLDER = Path("model")
MESSAGES = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "{{ x }}"}]


def test_a_text(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_text(FOLDER, byte_tokenizer, "abc")
    assert encoded["input_ids"].shape == encoded["attention_mask"].shape == (1, 3)


def test_a_conversation_as_transformers_encodes_it(byte_tokenizer: Any) -> None:
    expected = byte_tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    encoded = encode_chat(FOLDER, byte_tokenizer, MESSAGES)
    assert encoded["input_ids"].tolist() == expected["input_ids"].tolist()
    assert encoded["attention_mask"].tolist() == expected["attention_mask"].tolist()


def test_where_processes_cannot_fork(
    byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = render_chat(FOLDER, byte_tokenizer, MESSAGES)
    monkeypatch.delattr(os, "fork")
    assert render_chat(FOLDER, byte_tokenizer, MESSAGES) == expected
    byte_tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ConfigError, match=r"model: .*no system role"):
        render_chat(FOLDER, byte_tokenizer, MESSAGES)


def test_an_error_in_a_template_is_told(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    byte_tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ConfigError, match=r"model: its chat template fails .*no system role"):
        encode_chat(FOLDER, byte_tokenizer, MESSAGES)


class PanicException(BaseException):
    """As Rust code raises it."""


def test_what_a_tokenizer_raises() -> None:
    for error in (KeyError("x"), PanicException("index out of range")):
        with (
            pytest.raises(ConfigError, match=rf"its tokenizer fails .{type(error).__name__}: .*x"),
            explain_tokenizer_errors(FOLDER, "fails"),
        ):
            raise error
    with pytest.raises(ConfigError, match=r"^ours$"), explain_tokenizer_errors(FOLDER, "fails"):
        raise ConfigError("ours")
    with pytest.raises(KeyboardInterrupt), explain_tokenizer_errors(FOLDER, "fails"):
        raise KeyboardInterrupt
