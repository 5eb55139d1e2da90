"""A tiny model folder, ways to spoil it, and all that is done to a folder before it is compiled."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nxdi import NxdiError
from nxdi.cli.model_options import load_tokenizer
from nxdi.cli.prompts import encode_text, render_chat
from nxdi.generation import HuggingFaceGenerationAdapter
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from tiny_models import make_app, save_tiny, tiny_hf_model

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
MAX_SECONDS = 5  # of computing; a machine that is busy with other things changes nothing
ALLOWED_GROWTH = 100 << 20  # bytes of memory, besides twice the size of the folder
CLEAR_PEAK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")

Spoil = Callable[[Path], object]
Kinds = dict[str, tuple[Spoil, type[NxdiError], str]]  # the error and what it says

MESSAGES = [{"role": "user", "content": "hello"}]


def write_folder(folder: Path) -> Path:
    """A sound folder: one layer, 40 tokens, a tokenizer of letters with a chat template."""
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = tiny_hf_model("llama", vocab_size=40, max_position_embeddings=64, **shape)
    save_tiny(model, folder)
    letters = ["<s>", *"abcdefghijklmnopqrstuvwxyz<>: "]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    backend.decoder = decoders.Fuse()
    make: Any = PreTrainedTokenizerFast  # its constructor has no types
    tokenizer = make(tokenizer_object=backend, bos_token="<s>", chat_template=TEMPLATE)
    # In the JSON file, as older folders have it, so that it is damaged with the rest.
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    return folder


def open_model(folder: Path) -> NeuronBaseForCausalLM:
    """Config, class, plan, the model on the meta device, the checkpoint, generation defaults."""
    app = make_app(folder, seq_len=32, max_context_length=16, torch_dtype=None)
    app.identity()
    app.rank_weights((0,))
    HuggingFaceGenerationAdapter(app)
    return app


def open_tokenizer(folder: Path) -> torch.Tensor:
    """The tokenizer, a rendered conversation, an encoded text."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.chat_template is not None:
        render_chat(folder, tokenizer, MESSAGES)
    ids: torch.Tensor = encode_text(folder, tokenizer, "hello")["input_ids"]
    return ids


def peak_memory() -> int:
    lines = STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10


@contextmanager
def within_limits(folder: Path) -> Iterator[None]:
    """Hold what is done with a folder to its time and memory, however it ends."""
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    measures = os.access(CLEAR_PEAK, os.W_OK)
    if measures:
        CLEAR_PEAK.write_text("5")  # the peak starts anew
    before = peak_memory() if measures else 0
    started = time.process_time()
    try:
        yield
    finally:
        assert time.process_time() - started < MAX_SECONDS
        assert not measures or peak_memory() - before <= 2 * size + ALLOWED_GROWTH


def check_refused(folder: Path, open_folder: Callable[[Path], object], kind: Any) -> None:
    spoil, error, says = kind
    open_folder(folder)  # it was sound, and everything that opening takes is imported
    spoil(folder)
    with within_limits(folder), pytest.raises(error, match=says) as raised:
        open_folder(folder)
    assert type(raised.value) is error
    assert len(str(raised.value)) < 5000


def write(name: str, data: bytes | str | list[Any] | dict[str, Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        encoded = data if isinstance(data, (bytes, str)) else json.dumps(data)
        content = encoded.encode() if isinstance(encoded, str) else encoded
        (folder / name).write_bytes(content)

    return spoil


def change(name: str, edit: Callable[[str], str | bytes]) -> Spoil:
    return lambda folder: write(name, edit((folder / name).read_text()))(folder)


def values(name: str, **changes: Any) -> Spoil:
    return change(name, lambda text: json.dumps({**json.loads(text), **changes}))


def replaced(make: Callable[[Path], object], name: str = "config.json") -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil
