"""Durable files: whole or not at all, whichever call fails and whoever is killed."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nxdi.errors import ArtifactError
from nxdi.runtime import files

Hidden = Callable[[Path], list[str]]


def put(target: Path, text: str) -> None:
    with files.atomic_directory(target) as folder:
        (folder / "deep").mkdir()
        (folder / "a").write_bytes(text.encode())
        (folder / "deep" / "b").write_bytes(text.encode())


def content(target: Path) -> str | None:
    """The text `put` wrote, after recovery; None if there is nothing. A mix fails."""
    files.recover(target)
    if not target.exists():
        return None
    texts = {path.read_text() for path in files.list_files(target).values()}
    assert set(files.list_files(target)) == {"a", "deep/b"}
    assert len(texts) == 1
    return texts.pop()


# --- atomic_directory -------------------------------------------------------------------------


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path, hidden_entries: Hidden):
    target = tmp_path / "new" / "parents" / "model"
    put(target, "one")
    assert content(target) == "one"
    put(target, "two")
    assert content(target) == "two"
    assert hidden_entries(target.parent) == []


def test_nothing_is_seen_before_the_block_ends(tmp_path: Path):
    target = tmp_path / "model"
    put(target, "old")
    with files.atomic_directory(target) as folder:
        (folder / "a").write_text("half done")
        assert folder.parent == tmp_path  # the same file system, so that it can be renamed
        assert str(os.getpid()) in folder.name
        assert content(target) == "old"


@pytest.mark.parametrize("error", [RuntimeError("bad graph"), KeyboardInterrupt()])
def test_an_error_in_the_block_leaves_the_old_folder(
    tmp_path: Path, hidden_entries: Hidden, error: BaseException
):
    target = tmp_path / "model"
    put(target, "old")

    def fail_halfway() -> None:
        with files.atomic_directory(target) as folder:
            (folder / "a").write_text("new")
            raise error

    with pytest.raises(type(error)):
        fail_halfway()
    assert content(target) == "old"
    assert hidden_entries(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("old", ["old", None])
def test_every_single_disk_error_leaves_what_was_there(
    tmp_path: Path, hidden_entries: Hidden, disk: Any, code: int, old: str | None
):
    target = tmp_path / "model"
    if old is not None:
        put(target, old)
    failures = 0
    for error in disk.failures(lambda: put(target, "new"), code):
        failures += 1
        assert str(target) in str(error)
        assert os.strerror(code) in str(error)
        assert content(target) == old
        assert hidden_entries(tmp_path) == []
    assert failures > 8, "the disk never failed: the test tests nothing"
    assert content(target) == "new"


def test_everything_is_forced_to_disk_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target, events = tmp_path / "model", []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        events.append(os.fstat(descriptor).st_ino)
        real_sync(descriptor)

    def replace(old: Path, new: Path) -> None:
        events.append("rename")
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    put(target, "new")
    inodes = {path.stat().st_ino for path in (target, *target.rglob("*"))}
    assert set(events[: events.index("rename")]) == inodes
    assert events[events.index("rename") + 1 :] == [tmp_path.stat().st_ino]
    events.clear()
    files.atomic_write(tmp_path / "note", b"x")
    assert events == [(tmp_path / "note").stat().st_ino, "rename", tmp_path.stat().st_ino]


def test_a_disk_that_keeps_failing_leaves_old_or_new(
    tmp_path: Path, hidden_entries: Hidden, disk: Any
):
    target = tmp_path / "model"
    put(target, "old")
    for failing in range(1, 100):
        disk.fail(failing, errno.EIO, last=1000)
        with suppress(ArtifactError):
            put(target, "new")
        untouched = disk.calls < failing
        disk.heal()
        assert content(target) in {"old", "new"}
        put(target, "old")
        assert hidden_entries(tmp_path) == []
        if untouched:
            break
    assert failing > 8, "the disk never failed: the test tests nothing"


def test_an_error_that_is_not_the_systems_passes_through(tmp_path: Path):
    with pytest.raises(OSError, match="no route"), files.atomic_directory(tmp_path / "model"):
        raise OSError("no route")


def test_a_file_in_the_way_is_kept(tmp_path: Path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ArtifactError, match="Not a directory"):
        put(tmp_path / "model", "new")
    assert (tmp_path / "model").read_text() == "mine"


def test_a_link_to_a_folder_is_written_through(tmp_path: Path):
    put(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    put(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == "new"


# --- left-overs -------------------------------------------------------------------------------


def test_the_next_write_clears_left_overs_of_any_target_in_the_folder(
    tmp_path: Path, hidden_entries: Hidden
):
    for name in (".model.123-0123abcd.nxdi-new", ".other.456-0123abcd.nxdi-new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    (tmp_path / ".file.789-0123abcd.nxdi-new").write_text("x")
    (tmp_path / ".mine").write_text("not ours")
    put(tmp_path / "model", "new")
    assert hidden_entries(tmp_path) == [".mine"]


def test_the_work_of_a_live_writer_is_left_alone(tmp_path: Path):
    with files.atomic_directory(tmp_path / "slow") as folder:
        (folder / "a").write_text("slow")
        (folder / "deep").mkdir()
        put(tmp_path / "model", "new")
        thread = threading.Thread(target=put, args=(tmp_path / "third", "new"))
        thread.start()
        thread.join()
        (folder / "deep" / "b").write_text("slow")
    assert content(tmp_path / "slow") == "slow"


def test_a_folder_moved_aside_is_put_back(tmp_path: Path):
    put(tmp_path / "model", "old")
    (tmp_path / "model").rename(tmp_path / ".model.123-0123abcd.nxdi-old")
    files.recover(tmp_path / "model")
    assert content(tmp_path / "model") == "old"


def test_a_folder_moved_aside_is_put_back_by_a_write_beside_it(tmp_path: Path):
    put(tmp_path / "model", "old")
    (tmp_path / "model").rename(tmp_path / ".model.123-0123abcd.nxdi-old")
    put(tmp_path / "other", "new")
    assert (tmp_path / "model" / "a").read_text() == "old"


def test_a_folder_moved_aside_goes_once_its_successor_is_there(
    tmp_path: Path, hidden_entries: Hidden
):
    put(tmp_path / "model", "new")
    put(tmp_path / ".model.123-0123abcd.nxdi-old", "old")
    files.recover(tmp_path / "model")
    assert content(tmp_path / "model") == "new"
    put(tmp_path / "other", "new")
    assert hidden_entries(tmp_path) == []


def test_recovery_of_what_never_was_does_nothing(tmp_path: Path):
    files.recover(tmp_path / "nowhere" / "model")
    files.recover(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# --- locks ------------------------------------------------------------------------------------


def test_a_lock_keeps_other_threads_out_and_lets_its_holder_in(tmp_path: Path):
    order = []

    def second() -> None:
        with files.locked(tmp_path / "model"):
            order.append("second")

    with files.locked(tmp_path / "model"):
        thread = threading.Thread(target=second)
        thread.start()
        with files.locked(tmp_path / "model"):
            order.append("first, again")
        thread.join(timeout=0.2)
        order.append("first")
    thread.join()
    assert order == ["first, again", "first", "second"]


HOLD = """
import sys, time
from pathlib import Path
from nxdi.runtime import files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_lets_go_of_its_lock(tmp_path: Path, start_script: Callable[..., Any]):
    holder = start_script(HOLD, tmp_path / "model")
    assert holder.stdout.readline() == "held\n"
    taken = threading.Event()

    def take() -> None:
        with files.locked(tmp_path / "model"):
            taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not taken.wait(timeout=0.2)
    holder.kill()
    holder.communicate()
    thread.join(timeout=5)
    assert taken.is_set()


def test_a_lock_that_cannot_be_made_is_explained(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="file"), files.locked(tmp_path / "file" / "model"):
        pass


# --- single files, removal, hashes ------------------------------------------------------------


def test_atomic_write_replaces_a_file(tmp_path: Path, hidden_entries: Hidden):
    files.atomic_write(tmp_path / "note", b"one")
    files.atomic_write(tmp_path / "note", b"two")
    assert (tmp_path / "note").read_bytes() == b"two"
    assert hidden_entries(tmp_path) == []


def test_atomic_write_refuses_a_folder(tmp_path: Path):
    put(tmp_path / "model", "old")
    with pytest.raises(ArtifactError, match="Is a directory"):
        files.atomic_write(tmp_path / "model", b"x")
    assert content(tmp_path / "model") == "old"


def test_atomic_write_is_whole_whichever_call_fails(
    tmp_path: Path, hidden_entries: Hidden, disk: Any
):
    note, failures = tmp_path / "note", 0
    files.atomic_write(note, b"old note")
    for _ in disk.failures(lambda: files.atomic_write(note, b"new"), errno.EIO):
        failures += 1
        assert note.read_bytes() in {b"old note", b"new"}
        assert hidden_entries(tmp_path) == []
        files.atomic_write(note, b"old note")
    assert failures > 4, "the disk never failed: the test tests nothing"
    assert (tmp_path / "note").read_bytes() == b"new"


def test_remove_directory(tmp_path: Path, hidden_entries: Hidden):
    put(tmp_path / "model", "old")
    files.remove_directory(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert hidden_entries(tmp_path) == []


def test_removing_what_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(ArtifactError, match="model"):
        files.remove_directory(tmp_path / "model")


def test_a_removal_that_was_cut_short_is_finished_and_never_undone(
    tmp_path: Path, hidden_entries: Hidden, monkeypatch: pytest.MonkeyPatch
):
    put(tmp_path / "model", "old")
    with monkeypatch.context() as patched:
        patched.setattr(files.shutil, "rmtree", lambda *args, **kwargs: None)
        files.remove_directory(tmp_path / "model")
    assert len(hidden_entries(tmp_path)) == 1
    assert content(tmp_path / "model") is None
    put(tmp_path / "other", "new")
    assert content(tmp_path / "model") is None
    assert hidden_entries(tmp_path) == []


def test_sha256_of_a_file_of_several_blocks(tmp_path: Path):
    data = os.urandom(2 * files._BLOCK + 7)
    (tmp_path / "file").write_bytes(data)
    assert files.sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_the_hash_of_a_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(ArtifactError, match="gone"):
        files.sha256_file(tmp_path / "gone")


def test_list_files_names_every_file(tmp_path: Path):
    put(tmp_path / "model", "x")
    (tmp_path / "model" / ".hidden").write_text("x")
    (tmp_path / "model" / "empty").mkdir()
    assert sorted(files.list_files(tmp_path / "model")) == [".hidden", "a", "deep/b"]
    assert files.list_files(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("a"), os.mkfifo])
def test_list_files_refuses_links_and_special_files(tmp_path: Path, make: Callable[[Path], Any]):
    put(tmp_path / "model", "x")
    make(tmp_path / "model" / "odd")
    with pytest.raises(ArtifactError, match="odd"):
        files.list_files(tmp_path / "model")


def test_canonical_json_has_one_spelling():
    assert files.canonical_json({"b": (1, 2), "a": None}) == b'{"a":null,"b":[1,2]}'
