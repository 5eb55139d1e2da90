from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.errors import WeightError
from nxdi.runtime.checkpoint import (
    find_checkpoint,
    listed,
    read_checkpoint,
    read_safetensors,
    write_safetensors,
)

MAPS = Path("/proc/self/maps")
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return got.keys() == expected.keys() and all(
        torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype
        for name, tensor in expected.items()
    )


def write_index(folder: Path, name: str, files: Any) -> None:
    text = json.dumps({"weight_map": files} if isinstance(files, dict) else files)
    (folder / f"{name}.index.json").write_text(text)


def test_one_safetensors_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", TENSORS)
    assert same(read_checkpoint(tmp_path), TENSORS)


def test_indexed_safetensors(tmp_path: Path) -> None:
    for name, tensor in TENSORS.items():
        write_safetensors(tmp_path / f"part-{name}.safetensors", {name: tensor})
    files = {name: f"part-{name}.safetensors" for name in TENSORS}
    write_index(tmp_path, "model.safetensors", files)
    assert [file.name for file in find_checkpoint(tmp_path)] == sorted(files.values())
    assert same(read_checkpoint(tmp_path), TENSORS)


@pytest.mark.parametrize("is_zip", [True, False])  # False: as torch wrote them before 1.6
def test_pickled_tensors(tmp_path: Path, is_zip: bool) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, file, _use_new_zipfile_serialization=is_zip)
    assert same(read_checkpoint(tmp_path), TENSORS)


def test_indexed_pickled_tensors(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "part.bin")
    write_index(tmp_path, "pytorch_model.bin", dict.fromkeys(TENSORS, "part.bin"))
    assert same(read_checkpoint(tmp_path), TENSORS)


def test_safetensors_come_first(tmp_path: Path) -> None:
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    write_safetensors(tmp_path / "model.safetensors", TENSORS)
    assert same(read_checkpoint(tmp_path), TENSORS)


def test_no_checkpoint(tmp_path: Path) -> None:
    message = r"no checkpoint in .*: it holds neither model.safetensors nor pytorch_model.bin"
    with pytest.raises(WeightError, match=message):
        read_checkpoint(tmp_path)


def test_an_index_that_names_a_missing_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "here.safetensors", TENSORS)
    write_index(tmp_path, "model.safetensors", {"a": "here.safetensors", "b": "gone.safetensors"})
    message = r"model.safetensors.index.json names files that are missing: 'gone.safetensors'"
    with pytest.raises(WeightError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.bin", "..", ""])
def test_an_index_that_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_safetensors(tmp_path / "secret.safetensors", TENSORS)
    write_index(folder, "model.safetensors", {"a": name})
    with pytest.raises(WeightError, match=r"index.json names files (outside|that are missing)"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', "not json", "[" * 100_000],
)
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightError, match=r"index.json is not a checkpoint index: .*fetch it"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(("name", "said"), [(3, "3"), ([1], r"\[1\]"), (None, "None")])
def test_an_index_with_something_else_than_a_name(tmp_path: Path, name: Any, said: str) -> None:
    write_index(tmp_path, "model.safetensors", {"a": name})
    with pytest.raises(WeightError, match=f"names files outside its folder: {said}"):
        read_checkpoint(tmp_path)


def damaged(data: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "cut by one byte": data[:-1],
        "header length": b"\xff" * 8 + data[8:],
        "header": data[:8] + b"\x00" * 20 + data[28:],
        "something else": b"<!doctype html><p>404</p>" * 20,
    }


@pytest.mark.parametrize("damage", damaged(b"" * 100))
def test_damaged_safetensors(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "model.safetensors"
    write_safetensors(file, TENSORS)
    file.write_bytes(damaged(file.read_bytes())[damage])
    with pytest.raises(WeightError, match=r"model.safetensors is not a readable .*fetch it again"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("damage", ["empty", "cut", "something else"])
def test_damaged_pickles(tmp_path: Path, damage: str, is_zip: bool) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, file, _use_new_zipfile_serialization=is_zip)
    file.write_bytes(damaged(file.read_bytes())[damage])
    with pytest.raises(WeightError, match=r"pytorch_model.bin .*fetch it again"):
        read_checkpoint(tmp_path)


class Canary:
    """Creates a file when it is unpickled by a reader that runs what it reads."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # torch's, of the file
@pytest.mark.parametrize("kind", ["zip", "before torch 1.6", "plain pickle"])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, kind: str) -> None:
    sung = tmp_path / "sung"
    content = {**TENSORS, "c": Canary(sung)}
    pickle.loads(pickle.dumps(content))
    assert sung.exists(), "the canary must be able to sing"
    sung.unlink()
    file = tmp_path / "pytorch_model.bin"
    if kind == "plain pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(WeightError, match=r"could run code; .*convert it to safetensors"):
        read_checkpoint(tmp_path)
    assert not sung.exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], {"a": 1}, {"a": {"b": torch.ones(1)}}, 3])
def test_pickles_of_something_else_than_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightError, match=r"not a dictionary of tensors; save model.state_dict"):
        read_checkpoint(tmp_path)


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(8.0)
    write_safetensors(tmp_path / "x", {"whole": whole, "part": whole[::2], "same": whole})
    got = read_safetensors(tmp_path / "x")
    assert same(got, {"whole": whole, "part": whole[::2], "same": whole})


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped")
def test_safetensors_are_mapped_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_safetensors(file, {"big": torch.zeros(1 << 20)})
    tensor = read_safetensors(file)["big"]
    maps = [line.split() for line in MAPS.read_text().splitlines() if str(file) in line]
    ranges = [[int(end, 16) for end in columns[0].split("-")] for columns in maps]
    assert any(low <= tensor.data_ptr() < high for low, high in ranges)


def test_listed() -> None:
    assert listed(["b", "a"]) == "a, b"
    assert listed("abc", most=2) == "a, b and 1 more"


def test_a_written_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "weights.safetensors", {"a": torch.zeros(2)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
