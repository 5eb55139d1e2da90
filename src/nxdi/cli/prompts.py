"""Text to token ids with the tokenizer of a model folder, which may come from anywhere.

A chat template is a program. transformers runs it in a sandbox, which keeps it from everything but
time and memory; a process of its own, with limits, keeps it from those.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_SECONDS = 2  # of computing, for one rendering
TEMPLATE_MEMORY = 64 << 20  # bytes, for one rendering
_DONE, _FAILED = b"+", b"-"


@contextmanager
def explain_tokenizer_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn whatever a tokenizer raises in the block into a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except BaseException as error:
        # A failed check in the Rust code behind a tokenizer is no Exception to Python.
        is_panic = type(error).__name__ == "PanicException"
        if not isinstance(error, Exception) and not is_panic:
            raise
        reason = " ".join(str(error).split())[:1000]
        raise ConfigError(
            f"{folder}: its tokenizer {what} ({type(error).__name__}: {reason}); add or correct "
            "its files; code in a model folder is never run"
        ) from error


def encode_text(folder: Path, tokenizer: PreTrainedTokenizerBase, text: str) -> Mapping[str, Any]:
    """`input_ids` and `attention_mask` [1, tokens] of a text.

    Raises: ConfigError if the tokenizer fails.
    """
    with explain_tokenizer_errors(folder, "fails"):
        encoded: Mapping[str, Any] = tokenizer(text, return_tensors="pt")
    return encoded


def encode_chat(
    folder: Path, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> Mapping[str, Any]:
    """`input_ids` and `attention_mask` [1, tokens] of a conversation that the model is to answer.

    Raises: ConfigError if the chat template fails.
    """
    text = render_chat(folder, tokenizer, messages)
    with explain_tokenizer_errors(folder, "fails"):
        encoded: Mapping[str, Any] = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    return encoded


def render_chat(
    folder: Path, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> str:
    """The text of a conversation by the tokenizer's chat template.

    Raises: ConfigError if the template is in error, or takes more than its time or memory.
    """
    if not hasattr(os, "fork"):  # no such limits there
        with explain_tokenizer_errors(folder, "has a chat template in error"):
            return _render(tokenizer, messages)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=_render_limited, args=(sender, tokenizer, messages)
    )
    with warnings.catch_warnings():
        # Python warns of threads that hold locks; the child takes none of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    sender.close()
    try:
        # Computing is limited in the child; this is for a machine that hardly runs it.
        answer = receiver.recv_bytes() if receiver.poll(30 * TEMPLATE_SECONDS) else b""
    except EOFError:
        answer = b""
    child.kill()
    child.join()
    if answer[:1] == _DONE:
        return answer[1:].decode()
    reason = answer[1:].decode() or (
        f"more than {TEMPLATE_SECONDS} s or {TEMPLATE_MEMORY >> 20} MiB for one rendering"
    )
    raise ConfigError(f"{folder}: its chat template fails ({reason}); correct the template")


def _render_limited(
    sender: Connection, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> None:
    _limit_this_process()
    try:
        answer = _DONE + _render(tokenizer, messages).encode()
    except Exception as error:  # the template's own, and Jinja's
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        answer = _FAILED + reason[:1000].encode(errors="replace")
    sender.send_bytes(answer)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _limit_this_process() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (TEMPLATE_SECONDS, TEMPLATE_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mapped = Path("/proc/self/statm")
    if mapped.exists():  # only Linux holds a process to its address space
        size = int(mapped.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + TEMPLATE_MEMORY,) * 2)
