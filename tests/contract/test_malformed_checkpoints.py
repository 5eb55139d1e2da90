"""Every way a checkpoint can be wrong: a typed error that names the file, within bounds."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nxdi import WeightError
from untrusted import (
    Kinds,
    Spoil,
    check_refused,
    open_model,
    open_tokenizer,
    replaced,
    write,
    write_folder,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model")


def header(text: str | bytes, claim: int | None = None, rest: bytes = b"") -> Spoil:
    raw = text.encode() if isinstance(text, str) else text
    size = len(raw) if claim is None else claim
    return write("model.safetensors", struct.pack("<Q", size) + raw + rest)


def entry(**changes: Any) -> Spoil:
    """A file whose one tensor is described with changes."""
    described = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return header(json.dumps({"norm.weight": described}), rest=bytes(8))


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        loaded = load_file(file)
        edit(loaded)
        save_file(loaded, file)

    return spoil


def index(files: object, **shards: str) -> Spoil:
    """An index in place of the checkpoint, and shards that are copies of it."""

    def spoil(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").unlink()
        for name in shards.values():
            (folder / name).write_bytes(content)
        write("model.safetensors.index.json", {"weight_map": files})(folder)

    return spoil


def index_text(text: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        write("model.safetensors.index.json", text)(folder)

    return spoil


def pickled(data: Callable[[Path], bytes]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(data(folder))

    return spoil


class Call:
    """What a hostile pickle holds: something to call on loading."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def saved(content: object, is_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def zip_bomb(folder: Path) -> bytes:
    """A megabyte that unpacks to a gigabyte, in the form of a checkpoint."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("model/version", "3\n")
        with archive.open("model/data.pkl", "w", force_zip64=True) as record:
            for _ in range(1024):
                record.write(bytes(1 << 20))
    return buffer.getvalue()


def claimed(folder: Path) -> bytes:
    """A few bytes that say they are a tensor of four terabytes."""
    return saved({"embed_tokens.weight": torch.zeros(1).expand(10**6, 10**6)})


def tar(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


EMPTY_TENSORS = json.dumps(
    {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}
)
NOT_SAFE = "model.safetensors is not a readable safetensors file"
NOT_TORCH = "pytorch_model.bin is not a readable PyTorch checkpoint"
NOT_INDEX = "model.safetensors.index.json is not a checkpoint index"
OUTSIDE = "model.safetensors.index.json names files outside its folder"
MISSING = "model.safetensors.index.json names files that are missing"
CHECKPOINTS: Kinds = {
    "empty": (write("model.safetensors", b""), WeightError, NOT_SAFE),
    "less than a length": (write("model.safetensors", b"\x10\0\0"), WeightError, NOT_SAFE),
    "a header cut short": (header('{"a": {"dty', claim=100), WeightError, NOT_SAFE),
    "a header beyond the file": (header("{}", claim=10_000), WeightError, NOT_SAFE),
    "a header of 100 MB claimed": (header("{}", claim=10**8), WeightError, "header has 1000"),
    "a header beyond all memory": (header("{}", claim=2**64 - 1), WeightError, "header has 1844"),
    "a header of 40 MB": (header(b"{" + b" " * (40 << 20) + b"}"), WeightError, "more than 3355"),
    "a header of many tensors": (header(EMPTY_TENSORS), WeightError, "holds 100001 tensors"),
    "a header that nests": (header('{"a":' * 10**5), WeightError, NOT_SAFE),
    "a header that is a list": (header("[]"), WeightError, NOT_SAFE),
    "a header that is no text": (header(b"\xff\xfe" * 20), WeightError, NOT_SAFE),
    "offsets beyond the file": (entry(shape=[4], data_offsets=[0, 16]), WeightError, NOT_SAFE),
    "offsets backwards": (entry(data_offsets=[8, 0]), WeightError, NOT_SAFE),
    "negative offsets": (entry(data_offsets=[-8, 0]), WeightError, NOT_SAFE),
    "offsets that overlap": (
        header(
            json.dumps(
                {
                    name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
                    for name in ("a", "b")
                }
            ),
            rest=bytes(8),
        ),
        WeightError,
        NOT_SAFE,
    ),
    "a gap": (entry(shape=[1], data_offsets=[4, 8]), WeightError, NOT_SAFE),
    "an unknown dtype": (entry(dtype="F33"), WeightError, NOT_SAFE),
    "a dtype that is a number": (entry(dtype=7), WeightError, NOT_SAFE),
    "a negative shape": (entry(shape=[-2]), WeightError, NOT_SAFE),
    "a shape that overflows": (entry(shape=[2**33, 2**33]), WeightError, NOT_SAFE),
    "a shape of another size": (entry(shape=[3]), WeightError, NOT_SAFE),
    "a shape that is text": (entry(shape="2"), WeightError, NOT_SAFE),
    "a name twice": (
        header(
            '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
            '"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}',
            rest=bytes(8),
        ),
        WeightError,
        "model.safetensors|does not fit the model",
    ),
    "bytes after the end": (
        lambda f: (f / "model.safetensors").open("ab").write(b"more"),
        WeightError,
        NOT_SAFE,
    ),
    "a name with control characters": (
        tensors(lambda t: t.update({"\x1b]0;owned\a": torch.ones(1)})),
        WeightError,
        r"not used by the model: '\\x1b\]0;owned\\x07'",
    ),
    "a very long name": (
        tensors(lambda t: t.update({"x" * 10**6: torch.ones(1)})),
        WeightError,
        r"xxx\.\.\.",
    ),
    "a tensor of another rank": (
        tensors(lambda t: t.update({"model.norm.weight": torch.ones(4, 4)})),
        WeightError,
        "norm.weight has shape",
    ),
    "a pipe": (replaced(os.mkfifo, "model.safetensors"), WeightError, "no checkpoint in"),
    "a directory": (replaced(Path.mkdir, "model.safetensors"), WeightError, "no checkpoint in"),
    "a link to a device": (
        replaced(lambda file: file.symlink_to("/dev/zero"), "model.safetensors"),
        WeightError,
        "no checkpoint in",
    ),
    "a pickle": (
        lambda f: write("model.safetensors", saved({"a": torch.ones(1)}))(f),
        WeightError,
        "model.safetensors is not a readable",
    ),
    "index: not JSON": (index_text("weights"), WeightError, NOT_INDEX),
    "index: a list": (index_text("[]"), WeightError, NOT_INDEX),
    "index: no map": (index_text("{}"), WeightError, NOT_INDEX),
    "index: a map that is a list": (index([1]), WeightError, NOT_INDEX),
    "index: a map that is empty": (index({}), WeightError, NOT_INDEX),
    "index: up": (index({"a": "../model.safetensors"}), WeightError, OUTSIDE),
    "index: absolute": (index({"a": "/etc/passwd"}), WeightError, OUTSIDE),
    "index: a subfolder": (index({"a": "sub/model.safetensors"}), WeightError, OUTSIDE),
    "index: a null byte": (index({"a": "x\0.safetensors"}), WeightError, OUTSIDE),
    "index: numbers": (index({"a": 1, "b": None}), WeightError, OUTSIDE),
    "index: missing": (index({"a": "absent.safetensors"}), WeightError, MISSING),
    "index: a long name": (index({"a": "x" * 10_000}), WeightError, OUTSIDE),
    "index: itself": (
        index({"a": "model.safetensors.index.json"}),
        WeightError,
        "index.json is (not a readable|damaged)",
    ),
    "index: many files": (
        index({f"t{i}": f"{i}.safetensors" for i in range(50_000)}),
        WeightError,
        "and 49980 more",
    ),
    "index: huge": (
        index_text('{"weight_map":{' + ",".join(f'"{i}":""' for i in range(600_000)) + "}}"),
        WeightError,
        "index.json holds about 600001 values, more than 500000",
    ),
    "index: a tensor in two files": (
        index({"a": "1.safetensors", "b": "2.safetensors"}, a="1.safetensors", b="2.safetensors"),
        WeightError,
        "2.safetensors repeats tensors of another file",
    ),
    "pickle: code": (
        pickled(lambda f: pickle.dumps({"a": Call(f / "ran")})),
        WeightError,
        "pytorch_model.bin .* could run code",
    ),
    "pickle: empty": (pickled(lambda f: b""), WeightError, "pytorch_model.bin"),
    "pickle: cut short": (
        pickled(lambda f: saved({"a": torch.ones(1000)})[:3000]),
        WeightError,
        "pytorch_model.bin",
    ),
    "pickle: a zip bomb": (pickled(zip_bomb), WeightError, f"{NOT_TORCH}: it is compressed"),
    "pickle: a claim": (pickled(claimed), WeightError, "more than twice its size"),
    "pickle: a tar": (pickled(tar), WeightError, "pytorch_model.bin"),
    "pickle: a list": (pickled(lambda f: saved([1])), WeightError, "not a dictionary of tensors"),
    "pickle: names that are numbers": (
        pickled(lambda f: saved({1: torch.ones(1)})),
        WeightError,
        "not a dictionary of tensors",
    ),
    "pickle: sparse": (
        pickled(lambda f: saved({"a": torch.ones(2, 2).to_sparse()})),
        WeightError,
        "pytorch_model.bin",
    ),
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # torch's, of oddities in a pickle
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_malformed_checkpoint(folder: Path, name: str) -> None:
    check_refused(folder, open_model, CHECKPOINTS[name])
    assert not (folder / "ran").exists()


def test_weights_that_are_no_numbers_are_data(folder: Path) -> None:
    tensors(lambda t: t["model.norm.weight"].fill_(float("nan")))(folder)
    open_model(folder)


def test_a_config_may_be_a_link(folder: Path) -> None:
    """The Hub's cache is made of links."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        moved = (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(moved)
    open_model(folder)
    open_tokenizer(folder)
