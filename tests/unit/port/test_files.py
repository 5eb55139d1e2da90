"""Files and folders: what is read, what is written, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.port import files
from nxdi.port.files import port_file, port_path, write_copy, write_in_place

OLD = b"\xef\xbb\xbffrom neuronx_distributed.utils import cpu_mode\r\n"
NEW = b"\xef\xbb\xbffrom nxdi.utils import cpu_mode\r\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name in ("a.py", "sub/b.py", ".hidden/c.py", "__pycache__/d.py", ".e.py", "notes.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(OLD)
    (folder / "same.py").write_bytes(b"import torch")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_reading_a_folder_takes_its_python_files_and_writes_nothing(folder: Path) -> None:
    before = contents(folder)
    ported = port_path(folder)
    names = [file.path.relative_to(folder).as_posix() for file in ported]
    assert names == ["a.py", "same.py", "sub/b.py"]
    assert [file.is_changed for file in ported] == [True, False, True]
    assert contents(folder) == before


def test_writing_in_place_keeps_permissions_and_other_files(folder: Path) -> None:
    before = contents(folder)
    (folder / "a.py").chmod(0o751)
    same = (folder / "same.py").stat()
    write_in_place(port_path(folder))
    assert contents(folder) == {**before, "a.py": NEW, "sub/b.py": NEW}
    assert (folder / "a.py").stat().st_mode & 0o777 == 0o751
    assert (folder / "same.py").stat() == same


def test_a_read_only_file_stops_all_writing(folder: Path) -> None:
    before = contents(folder)
    (folder / "sub/b.py").chmod(0o444)
    with pytest.raises(UnsupportedError, match=r"b\.py is read-only; make it writable or use"):
        write_in_place(port_path(folder))
    assert contents(folder) == before


def test_a_failed_write_leaves_the_file_and_nothing_beside_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    before = contents(folder)
    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(ConfigError, match=r"a\.py: .*No space left"):
        write_in_place(port_path(folder))
    assert contents(folder) == before


def test_a_copy_holds_everything(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    (folder / "link.md").symlink_to("notes.md")
    out = tmp_path / "deep" / "out"
    write_copy(folder, out, port_path(folder))
    expected = {**before, "a.py": NEW, "sub/b.py": NEW, "link.md": OLD}
    del expected["__pycache__/d.py"]
    assert contents(out) == expected
    assert (out / "link.md").is_symlink()
    assert contents(folder) == {**before, "link.md": OLD}


def test_a_copy_of_one_file_goes_into_the_folder(folder: Path, tmp_path: Path) -> None:
    write_copy(folder / "a.py", tmp_path / "out", port_path(folder / "a.py"))
    assert contents(tmp_path / "out") == {"a.py": NEW}


@pytest.mark.parametrize("name", ["model", "model/a.py", "model/within"])
def test_a_copy_never_replaces_anything(folder: Path, tmp_path: Path, name: str) -> None:
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"exists|is within"):
        write_copy(folder, tmp_path / name, port_path(folder))
    assert contents(folder) == before


def test_a_failed_copy_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    ported = port_path(folder)
    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(ConfigError, match="No space left"):
        write_copy(folder, tmp_path / "out", ported)
    assert list(tmp_path.iterdir()) == [folder]


def make_broken(path: Path, kind: str) -> None:
    if kind == "syntax":
        path.write_text("def f(:\n")
    elif kind == "bytes":
        path.write_bytes(b"x = '\xe9'")
    elif kind == "link":
        path.symlink_to("a.py")
    elif kind == "dangling":
        path.symlink_to("nowhere.py")
    else:
        os.mkfifo(path)


BROKEN = {
    "syntax": "line 1: not valid Python",
    "bytes": "cannot be decoded",
    "link": r"a symbolic link to a\.py; port that instead",
    "dangling": r"a symbolic link to nowhere\.py",
    "fifo": "not a regular file",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_ported(folder: Path, kind: str) -> None:
    make_broken(folder / "broken.py", kind)
    (broken,) = [file for file in port_path(folder) if file.error]
    assert broken.path == folder / "broken.py"
    assert not broken.is_changed
    with pytest.raises(UnsupportedError, match=rf"broken\.py: {BROKEN[kind]}"):
        port_path(folder / "broken.py")


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert port_file(folder / "a.py").error.startswith("cannot be read (Permission denied)")


def test_nothing_to_port(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere does not exist"):
        port_path(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"holds no \.py file"):
        port_path(tmp_path)
    with pytest.raises(ConfigError, match=r"File name too long"):
        port_path(tmp_path / ("x" * 300))
