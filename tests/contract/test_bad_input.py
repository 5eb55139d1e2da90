"""What a user can get wrong with a model folder or a prompt: each a typed error with its remedy."""

from __future__ import annotations

import errno
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nxdi import (
    ArtifactError,
    AutoModelForCausalLM,
    BucketError,
    ConfigError,
    NxdiError,
    ShapeError,
    UnsupportedError,
    WeightError,
)
from tiny_models import save_tiny, tiny_hf_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tiny_hf_model("llama"), tmp_path / "model")


def load(folder: Path, **options: Any) -> Any:
    settings = {"seq_len": 32, "max_context_length": 16, "backend": "eager", **options}
    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype="float32", **settings)


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def corrupt_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:40] = b"x" * 32
    file.write_bytes(data)


class _Code:
    """What a hostile pickle holds: something to call on loading."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def pickle_with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Code(folder / "canary")))


FOLDERS: dict[str, tuple[Callable[[Path], object], type[NxdiError], str]] = {
    "truncated weights": (truncate, WeightError, "model.safetensors"),
    "corrupt header": (corrupt_header, WeightError, "model.safetensors"),
    "pickle with code": (pickle_with_code, WeightError, "safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), WeightError, "no checkpoint"),
    "missing tensor": (
        lambda f: edit_weights(f, lambda t: t.pop("model.norm.weight")),
        WeightError,
        "norm.weight",
    ),
    "wrong shape": (lambda f: edit_config(f, intermediate_size=48), WeightError, "mlp.gate_proj"),
    "unknown architecture": (
        lambda f: edit_config(f, architectures=["NobodyForCausalLM"]),
        UnsupportedError,
        "NobodyForCausalLM",
    ),
    "unknown rope type": (
        lambda f: edit_config(f, rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
        ConfigError,
        "spiral",
    ),
    "config.json is no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        ConfigError,
        "config.json",
    ),
    "no config.json": (lambda f: (f / "config.json").unlink(), ConfigError, "config.json"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bad_model_folder_is_refused(folder: Path, name: str) -> None:
    spoil, error, says = FOLDERS[name]
    spoil(folder)
    with pytest.raises(error, match=says):
        load(folder)
    assert not (folder / "canary").exists()


def test_a_pickle_with_code_would_run_if_it_were_unpickled(folder: Path) -> None:
    pickle_with_code(folder)
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert (folder / "canary").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(code, "simulated")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(ArtifactError, match="simulated"):
        load(folder, artifact_dir=tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()


def test_bad_prompts(folder: Path) -> None:
    model = load(folder)
    with pytest.raises(ShapeError, match="at least one token"):
        model(torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(BucketError, match="max_context_length"):
        model(torch.zeros(1, 17, dtype=torch.int64))
    with pytest.raises(BucketError, match="batch_size"):
        model(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ShapeError, match="vocab_size"):
        model(torch.full((1, 4), 10**6))
    with pytest.raises(ShapeError, match="no token"):
        model(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64))
