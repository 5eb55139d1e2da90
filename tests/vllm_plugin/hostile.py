"""Requests that a server must survive: each is refused, or answered within bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vllm_plugin.serving import NAME

Body = dict[str, Any] | bytes


@dataclass(frozen=True)
class Request:
    """What is sent."""

    name: str
    path: str
    body: Body

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


# Values that the parameter cannot have.
_WRONG: dict[str, list[Any]] = {
    "n": [0, -1, 10**9, 1.5, "x", [], 2**70],
    "max_tokens": [-1, 10**9, "many", 1.5, {}, 2**70],
    "temperature": [-1, -0.001, float("nan"), float("inf"), -float("inf"), "hot", []],
    "top_p": [0, -1, 1.01, float("nan"), "x", 2**70],
    "top_k": [-2, 1.5, "x", -(2**70)],
    "min_p": [-0.1, 1.1, float("nan"), "x"],
    "presence_penalty": [-2.1, 2.1, float("nan"), "x", 1e400],
    "frequency_penalty": [-2.1, 2.1, float("nan"), "x"],
    "repetition_penalty": [0, -1, float("nan"), "x"],
    "logprobs": [-5, 10**9, "x", 2**70],
    "prompt_logprobs": [-5, 10**9, "x"],
    "min_tokens": [-1, 10**9, "x"],
    "seed": ["x", 1.5, 2**70, []],
    "stop": [[""], [1.5], {"a": 1}, [["a"]]],
    "stop_token_ids": ["x", [1.5], [["a"]]],
    "logit_bias": [[1], "x", {"x": 1}, {"-1": 1.0}, {"999999999": 1.0}],
    "allowed_token_ids": [[], [-1], [10**9], "x"],
    "bad_words": ["x", [1], [[""]]],
    "echo": ["x"],
    "stream": ["x", 7],
    "best_of": ["x"],
    "model": ["", "/etc/passwd", "../../etc/passwd", "nobody/nothing", "tiny/../tiny", 7, None],
    "prompt": [None, "", [], [-1], [10**9], [1.5], {"a": 1}, [[]], "x" * 100_000],
    "prompt_token_ids": ["x"],
    "priority": ["x"],
    "truncate_prompt_tokens": [-7, 10**9, "x"],
}
_PATTERNS = [
    "(a+)+b",
    "(a|a)*b" * 20,
    "((a{0,100}){0,100}){0,100}",
    "[",
    "(?=a)b",
    "\\" * 999,
    "a" * 100_000,
    "(?P<x>a)(?P=x)",
    "(.*)*(.*)*(.*)*z",
    "",
]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


_SCHEMAS: list[Any] = [
    {"type": "no such type"},
    {"$ref": "#"},
    {"$ref": "http://localhost:1/schema"},
    {"$ref": "file:///etc/passwd"},
    {"type": "array", "minItems": 10**9},
    {"type": "string", "minLength": 10**9},
    {"type": "string", "pattern": "(a+)+b"},
    {"enum": []},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}},
    {"anyOf": [{"const": str(i)} for i in range(3000)]},
    nested(60),
    [],
    "x",
    7,
]
_GRAMMARS = ["", "root ::= root", "root ::= ", 'root ::= "a" root | "b" root', "x" * 50_000, "::="]


def requests() -> Iterator[Request]:
    """More than 150 that are wrong, or ask for something absurd."""
    completions = "/v1/completions"
    base = {"model": NAME, "prompt": "Hello", "max_tokens": 8}
    for name, values in _WRONG.items():
        for value in values:
            yield Request(f"{name}={value!r:.40}", completions, {**base, name: value})
    yield from _structured(base, completions)
    yield from _raw(completions)
    yield from _chats()
    yield Request("stops", completions, {**base, "stop": [f"s{i}" for i in range(5000)]})
    yield Request(
        "biases", completions, {**base, "logit_bias": dict.fromkeys(map(str, range(200)), 1)}
    )
    yield Request("words", completions, {**base, "bad_words": ["x" * 50] * 500})
    yield Request("all scores", completions, {**base, "prompt_logprobs": 1, "logprobs": 1})


def large() -> Iterator[Request]:
    """Requests that are in order, each with the work of a crowd."""
    base = {"model": NAME, "max_tokens": 8, "temperature": 1.0}
    yield Request("n=100", "/v1/completions", {**base, "prompt": "Hello", "n": 100})
    yield Request("prompts", "/v1/completions", {**base, "prompt": ["Hi"] * 64})


def _structured(base: dict[str, Any], path: str) -> Iterator[Request]:
    kinds: dict[str, list[Any]] = {
        "regex": _PATTERNS,
        "json": _SCHEMAS,
        "grammar": _GRAMMARS,
        "choice": [[], [""], [1], "x", ["a" * 100_000], [str(i) for i in range(5000)]],
    }
    for kind, values in kinds.items():
        for i, value in enumerate(values):
            body = {**base, "structured_outputs": {kind: value}}
            yield Request(f"{kind} {i}", path, body)
    two = {**base, "structured_outputs": {"regex": "a", "choice": ["b"]}}
    yield Request("two constraints", path, two)


def _raw(path: str) -> Iterator[Request]:
    whole = json.dumps({"model": NAME, "prompt": "x"}).encode()
    bodies = {
        "empty": b"",
        "cut": whole[:-3],
        "not UTF-8": b'{"model": "tiny", "prompt": "\xff\xfe"}',
        "half a surrogate": b'{"model": "tiny", "prompt": "\\ud800", "max_tokens": 2}',
        "zeros": b"\x00" * 1000,
        "list": b"[]",
        "number": b"7",
        "deep": b"[" * 100_000,
        "10 MB": json.dumps({"model": NAME, "prompt": "x" * 10_000_000}).encode(),
        "10 MB of keys": b'{"a":' + b'"x",' * 2_500_000 + b"}",
        "twice": whole + whole,
    }
    for name, body in bodies.items():
        yield Request(name, path, body)


def _chats() -> Iterator[Request]:
    def chat(name: str, messages: Any, **options: Any) -> Request:
        body = {"model": NAME, "messages": messages, "max_tokens": 8, **options}
        return Request(f"chat {name}", "/v1/chat/completions", body)

    hello = [{"role": "user", "content": "Hello"}]
    for name, messages in {
        "none": [],
        "null": None,
        "text": "x",
        "no role": [{"content": "x"}],
        "long": [{"role": "user", "content": "x" * 200_000}],
        "an image": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
            }
        ],
    }.items():
        yield chat(name, messages)
    yield chat("many", hello * 2000)
    yield chat("a template", hello, chat_template="{{ ''.__class__.__mro__ }}")
    yield chat("bad tools", hello, tools=[{"type": "function"}])
    yield chat(
        "a missing tool",
        hello,
        tools=[],
        tool_choice={"type": "function", "function": {"name": "x"}},
    )
    yield chat("scores", hello, top_logprobs=10**6, logprobs=True)
