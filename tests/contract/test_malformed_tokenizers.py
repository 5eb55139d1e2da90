"""Every way a tokenizer can be wrong: a typed error that names the folder, within bounds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nxdi import ConfigError
from nxdi.cli.model_options import load_tokenizer
from nxdi.cli.prompts import render_chat
from untrusted import (
    MESSAGES,
    Kinds,
    Spoil,
    check_refused,
    open_tokenizer,
    replaced,
    values,
    write,
    write_folder,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model")


def tokenizer(**changes: Any) -> Spoil:
    return values("tokenizer.json", **changes)


def template(text: object) -> Spoil:
    return values("tokenizer_config.json", chat_template=text)


CANNOT = "its tokenizer cannot be loaded"
FAILS = "its chat template fails"
DOUBLE = {"type": "Replace", "pattern": {"String": "l"}, "content": "ll"}
TOKENIZERS: Kinds = {
    "empty": (write("tokenizer.json", ""), ConfigError, CANNOT),
    "not JSON": (write("tokenizer.json", "{"), ConfigError, CANNOT),
    "a list": (write("tokenizer.json", []), ConfigError, CANNOT),
    "nested": (write("tokenizer.json", '{"model":' * 10**5), ConfigError, CANNOT),
    "an unknown model": (tokenizer(model={"type": "Oracle"}), ConfigError, CANNOT),
    "a model that is a number": (tokenizer(model=3), ConfigError, CANNOT),
    "a vocabulary that is a list": (
        tokenizer(model={"type": "BPE", "vocab": [1], "merges": []}),
        ConfigError,
        CANNOT,
    ),
    "a merge of unknown tokens": (
        tokenizer(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}),
        ConfigError,
        CANNOT,
    ),
    "a pattern that is none": (
        tokenizer(
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": "("},
                "behavior": "Isolated",
                "invert": False,
            }
        ),
        ConfigError,
        CANNOT,
    ),
    "a character map that is none": (
        tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "////"}),
        ConfigError,
        "its tokenizer",
    ),
    "a pipe": (replaced(os.mkfifo, "tokenizer.json"), ConfigError, "tokenizer.json is a pipe"),
    "settings: a list": (
        write("tokenizer_config.json", []),
        ConfigError,
        "tokenizer_config.json holds a list",
    ),
    "settings: not JSON": (
        write("tokenizer_config.json", "{"),
        ConfigError,
        "tokenizer_config.json is not valid JSON",
    ),
    "settings: tokens that are numbers": (
        values("tokenizer_config.json", bos_token=[3]),
        ConfigError,
        CANNOT,
    ),
    "settings: a class that is a number": (
        values("tokenizer_config.json", tokenizer_class=3),
        ConfigError,
        "tokenizer_config.json: tokenizer_class must be a name",
    ),
    "settings: a class that is a model": (
        values("tokenizer_config.json", tokenizer_class="LlamaForCausalLM"),
        ConfigError,
        "tokenizer_config.json: tokenizer_class='LlamaForCausalLM' is no tokenizer",
    ),
    "settings: a class that is a function": (
        values("config.json", tokenizer_class="pipeline"),
        ConfigError,
        "config.json: tokenizer_class='pipeline' is no tokenizer",
    ),
    "special tokens: a list": (
        write("special_tokens_map.json", []),
        ConfigError,
        "special_tokens_map.json holds a list",
    ),
    "a token with a huge id": (
        tokenizer(model={"type": "BPE", "vocab": {"a": 2**31}, "merges": []}),
        ConfigError,
        "tokenizer.json: token id 2147483648 is more than 16777216",
    ),
    "a token without an id": (
        tokenizer(model={"type": "BPE", "vocab": {"a": None}, "merges": []}, added_tokens=[]),
        ConfigError,
        CANNOT,
    ),
    "rules that double a text": (
        tokenizer(normalizer={"type": "Sequence", "normalizers": [DOUBLE] * 40}),
        ConfigError,
        "tokenizer.json: its rules can make a text 1099511627776 times as long",
    ),
    "a rule that puts a large text": (
        tokenizer(normalizer={**DOUBLE, "content": "l" * 10**6}),
        ConfigError,
        "tokenizer.json: its rules can make a text 1000000 times as long",
    ),
    "settings: many special tokens": (
        values("tokenizer_config.json", extra_special_tokens=[str(i) for i in range(20_000)]),
        ConfigError,
        "tokenizer_config.json: extra_special_tokens holds 20000 tokens",
    ),
    "template: a number": (template(3), ConfigError, "template"),
    "template: a syntax error": (template("{% for %}"), ConfigError, FAILS),
    "template: an error": (template("{{ messages[0].name.first }}"), ConfigError, FAILS),
    "template: a refusal": (template("{{ raise_exception('no') }}"), ConfigError, f"{FAILS}.*no"),
    "template: an escape": (
        template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        ConfigError,
        f"{FAILS}.*unsafe",
    ),
    "template: an endless loop": (
        template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
        ConfigError,
        f"{FAILS} .more than 2 s or 64 MiB",
    ),
    "template: an endless number": (template("{{ 10 ** (10 ** 10) }}"), ConfigError, FAILS),
    "template: endless recursion": (
        template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        ConfigError,
        FAILS,
    ),
    "template: a large text": (template("{{ 'x' * 10 ** 10 }}"), ConfigError, FAILS),
    "template: a text that doubles": (
        template(
            "{% set n = namespace(x='xx') %}{% for i in range(60) %}"
            "{% set n.x = n.x ~ n.x %}{% endfor %}"
        ),
        ConfigError,
        FAILS,
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_malformed_tokenizer(folder: Path, name: str) -> None:
    check_refused(folder, open_tokenizer, TOKENIZERS[name])


def test_the_limits_of_a_template_are_not_those_of_the_process(folder: Path) -> None:
    loaded = load_tokenizer(folder)
    for _ in range(2):
        assert render_chat(folder, loaded, MESSAGES) == "<user>hello<assistant>"
    assert bytes(200 << 20)[-1] == 0
