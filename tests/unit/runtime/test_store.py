"""Artefacts: written whole, believed in nothing, matched against what is asked."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nxdi.errors import ArtifactError
from nxdi.runtime import store
from nxdi.runtime.files import canonical_json, locked

CONFIG = {"hidden_size": 64, "neuron_config": {"tp_degree": 2, "buckets": [128, 256]}}


def make_manifest(**changes: Any) -> store.Manifest:
    values: dict[str, Any] = {
        "library_version": "0.1.0",
        "torch_version": "2.13.0",
        "compiler_version": "g++ 12.2.0",
        "platform": "cpu avx2",
        "backend": "cpu",
        "config": CONFIG,
        "graphs": [{"phase": "prefill", "length": 128}],
        "kernels": [{"op": "attend", "chosen": "torch", "refused": {"nki": "no device"}}],
        "weights": {"fingerprint": "ab" * 32, "source": "model", "files": ["a.safetensors"]},
    }
    return store.Manifest(**(values | changes))


def populate(folder: Path, text: str = "one") -> None:
    (folder / "weights").mkdir()
    (folder / "neuron_config.json").write_bytes(json.dumps(CONFIG).encode())
    (folder / "graphs.pt2").write_bytes(text.encode() * 100)
    (folder / "empty.bin").write_bytes(b"")
    (folder / "weights" / "tp0_sharded_checkpoint.safetensors").write_bytes(bytes(range(256)) * 3)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    store.write_artifact(tmp_path / "model", make_manifest(), populate)
    return tmp_path / "model"


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and make its checksum right again, as only a forger would."""
    body = json.loads((path / "manifest.json").read_bytes())
    del body["sha256"]
    change(body)
    body["sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
    (path / "manifest.json").write_bytes(
        json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"
    )


# --- writing and opening ----------------------------------------------------------------------


def test_what_is_written_is_what_is_opened(tmp_path: Path):
    written = store.write_artifact(tmp_path / "model", make_manifest(), populate)
    opened = store.open_artifact(tmp_path / "model")
    assert opened == written
    assert dataclasses.replace(opened, files={}) == make_manifest()
    assert sorted(opened.files) == [
        "empty.bin",
        "graphs.pt2",
        "neuron_config.json",
        "weights/tp0_sharded_checkpoint.safetensors",
    ]
    assert opened.files["empty.bin"] == {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0}


def test_a_forged_manifest_that_changes_nothing_is_accepted(artifact: Path):
    """The negative of the forgeries below: they fail for what they change, not for being forged."""
    rewrite_manifest(artifact, lambda body: None)
    store.open_artifact(artifact)


def test_writing_again_replaces_everything(artifact: Path):
    store.write_artifact(
        artifact, make_manifest(backend="eager"), lambda folder: (folder / "x").touch() or None
    )
    assert store.open_artifact(artifact).backend == "eager"
    assert sorted(path.name for path in artifact.iterdir()) == ["manifest.json", "x"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("is_first", [False, True])
def test_every_single_disk_error_leaves_the_old_artefact(
    tmp_path: Path, disk: Any, hidden_entries: Any, code: int, is_first: bool
):
    target = tmp_path / "model"
    if not is_first:
        store.write_artifact(target, make_manifest(backend="old"), populate)
    new, failures = make_manifest(backend="new"), 0
    for error in disk.failures(lambda: store.write_artifact(target, new, populate), code):
        failures += 1
        assert os.strerror(code) in str(error)
        assert hidden_entries(tmp_path) == []
        if is_first:
            assert not target.exists()
        else:
            assert store.open_artifact(target).backend == "old"
    assert failures > 12, "the disk never failed: the test tests nothing"
    assert store.open_artifact(target).backend == "new"


def test_a_failing_populate_leaves_the_old_artefact(artifact: Path):
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("the compiler broke")

    with pytest.raises(RuntimeError, match="the compiler broke"):
        store.write_artifact(artifact, make_manifest(backend="new"), fail)
    assert store.open_artifact(artifact).backend == "cpu"


@pytest.mark.parametrize("name", ["model.safetensors", "thesis.tex", ".git"])
def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path, name: str):
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / name).write_text("precious")
    with pytest.raises(ArtifactError, match=f"'{name}'.*choose another folder"):
        store.write_artifact(tmp_path, make_manifest(), populate)
    assert (tmp_path / name).read_text() == "precious"


def test_a_damaged_artefact_is_replaced(artifact: Path):
    (artifact / "manifest.json").write_text("{")
    (artifact / "graphs.pt2").unlink()
    store.write_artifact(artifact, make_manifest(), populate)
    store.open_artifact(artifact)


def test_the_users_tokenizer_stays_through_compile_and_is_not_verified(tmp_path: Path):
    target = tmp_path / "model"
    (target / "additional_chat_templates").mkdir(parents=True)
    (target / "additional_chat_templates" / "tools.jinja").write_text("template")
    for text in ("first", "second"):
        (target / "tokenizer_config.json").write_text(text)
        store.write_artifact(target, make_manifest(), populate)
        assert (target / "tokenizer_config.json").read_text() == text
    assert (target / "additional_chat_templates" / "tools.jinja").read_text() == "template"
    assert not any(name.startswith("tokenizer") for name in store.open_artifact(target).files)


def test_a_kill_between_the_renames_does_not_cost_the_tokenizer(artifact: Path):
    (artifact / "tokenizer.json").write_text("mine")
    artifact.rename(artifact.parent / ".model.123-0123abcd.nxdi-old")
    store.write_artifact(artifact, make_manifest(), populate)
    assert (artifact / "tokenizer.json").read_text() == "mine"


def test_a_file_in_the_way_is_kept(tmp_path: Path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ArtifactError, match="Not a directory"):
        store.write_artifact(tmp_path / "model", make_manifest(), populate)
    assert (tmp_path / "model").read_text() == "mine"


# --- damage -----------------------------------------------------------------------------------


def test_every_truncation_is_found(artifact: Path):
    for file in [path for path in artifact.rglob("*") if path.is_file()]:
        data = file.read_bytes()
        for part in range(64):
            length = len(data) * part // 64
            if length < len(data):
                file.write_bytes(data[:length])
                with pytest.raises(ArtifactError, match="compile it again"):
                    store.open_artifact(artifact)
        file.write_bytes(data)
        store.open_artifact(artifact)


def test_every_flipped_bit_is_found(artifact: Path):
    rng = random.Random(20)
    files = [path for path in artifact.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) == 4
    for flip in range(1000):
        file = files[flip % len(files)]
        data = file.read_bytes()
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=file.name):
            store.open_artifact(artifact)
        file.write_bytes(data)
    store.open_artifact(artifact)


def test_every_bit_of_the_manifest_counts(artifact: Path):
    data = store.read_manifest(artifact).encode()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((ValueError, RecursionError)):
            store.Manifest.decode(bytes(damaged))


def test_a_missing_file_is_named(artifact: Path):
    (artifact / "graphs.pt2").unlink()
    with pytest.raises(ArtifactError, match=r"'graphs.pt2' is missing.*compile it again"):
        store.open_artifact(artifact)


@pytest.mark.parametrize("name", ["extra.bin", "weights/extra.safetensors", "weights/tokenizer.so"])
def test_an_unlisted_file_is_named(artifact: Path, name: str):
    (artifact / name).touch()
    with pytest.raises(ArtifactError, match=f"'{name}' is not listed"):
        store.open_artifact(artifact)


@pytest.mark.parametrize("missing", ["manifest.json", "."])
def test_what_has_no_manifest_is_no_artefact(tmp_path: Path, artifact: Path, missing: str):
    (artifact / "manifest.json").unlink()
    path = artifact if missing != "." else tmp_path / "nowhere"
    with pytest.raises(ArtifactError, match=r"manifest.json is missing"):
        store.open_artifact(path)


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
def test_a_manifest_that_is_something_else_is_refused(artifact: Path, text: bytes):
    (artifact / "manifest.json").write_bytes(text)
    with pytest.raises(ArtifactError, match=r"manifest.json: not a sound manifest"):
        store.open_artifact(artifact)


def forge(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.__setitem__(field, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forge("schema_version", 2), "schema version is not 1"),
        (forge("schema_version", None), "schema version is not 1"),
        (forge("backend", 3), "wrong fields: .'backend'"),
        (forge("files", []), "wrong fields: .'files'"),
        (forge("color", "red"), "unknown.*'color'"),
        (lambda body: body.pop("weights"), "missing.*'weights'"),
        (lambda body: body["files"].__setitem__("graphs.pt2", 7), "graphs.pt2: damaged"),
        (lambda body: body["files"]["graphs.pt2"].__setitem__("size", 1), "graphs.pt2: damaged"),
    ],
)
def test_forged_manifests_are_refused(artifact: Path, change: Any, message: str):
    rewrite_manifest(artifact, change)
    with pytest.raises(ArtifactError, match=message):
        store.open_artifact(artifact)


@pytest.mark.parametrize(
    "name",
    ["../secret", "weights/../../secret", "/etc/passwd", "", ".", "weights", "a\0b", "weights\\x"],
)
def test_a_listed_name_cannot_lead_out_of_the_folder(artifact: Path, name: str):
    secret = artifact.parent / "secret"
    secret.write_text("secret")
    record = {"sha256": hashlib.sha256(b"secret").hexdigest(), "size": 6}
    rewrite_manifest(artifact, lambda body: body["files"].__setitem__(name, record))
    with pytest.raises(ArtifactError, match="is missing from the folder"):
        store.open_artifact(artifact)


@pytest.mark.parametrize("name", ["graphs.pt2", "weights", "manifest.json", "tokenizer.json"])
def test_links_are_refused_even_to_the_right_content(artifact: Path, name: str):
    (artifact / name).exists() and (artifact / name).rename(artifact.parent / "elsewhere")
    (artifact / name).symlink_to(artifact.parent / "elsewhere")
    with pytest.raises(ArtifactError, match=f"{name}: a link"):
        store.open_artifact(artifact)


def replace_artifact(path: Path) -> None:
    store.write_artifact(path, make_manifest(backend="new"), lambda folder: populate(folder, "two"))


def test_an_artefact_replaced_while_it_is_verified_is_verified_again(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
):
    real, reads = store.read_manifest, []

    def replace_after_reading(path: Path) -> store.Manifest:
        manifest = real(path)
        if not reads:
            replace_artifact(path)
        reads.append(manifest.backend)
        return manifest

    monkeypatch.setattr(store, "read_manifest", replace_after_reading)
    assert store.open_artifact(artifact).backend == "new"
    assert reads == ["cpu", "new"]


@pytest.mark.parametrize("is_failing", [False, True])
def test_what_is_loaded_comes_from_one_artefact(artifact: Path, is_failing: bool):
    def load(manifest: store.Manifest) -> tuple[str, bytes]:
        if manifest.backend == "cpu":
            replace_artifact(artifact)
            if is_failing:
                raise FileNotFoundError("a graph")
        return manifest.backend, (artifact / "graphs.pt2").read_bytes()[:3]

    assert store.load_artifact(artifact, load) == ("new", b"two")


def test_an_error_of_the_loader_passes_through(artifact: Path):
    def load(manifest: store.Manifest) -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        store.load_artifact(artifact, load)


def test_loading_writes_nothing(artifact: Path):
    before = sorted(artifact.parent.rglob("*"))
    (artifact.parent / ".model.lock").unlink()
    store.open_artifact(artifact)
    before.remove(artifact.parent / ".model.lock")
    assert sorted(artifact.parent.rglob("*")) == before


# --- kills ------------------------------------------------------------------------------------

KILLED_WRITER = Path(__file__).with_name("killed_writer.py").read_text()


def test_a_kill_at_any_moment_leaves_old_or_new(tmp_path: Path, start_script: Callable[..., Any]):
    output, _ = start_script(KILLED_WRITER, tmp_path, "atomic").communicate(timeout=120)
    assert output.startswith("kills ")
    assert int(output.split()[1]) >= 200


def test_the_kill_test_notices_a_careless_writer(tmp_path: Path, start_script: Callable[..., Any]):
    output, _ = start_script(KILLED_WRITER, tmp_path, "careless").communicate(timeout=120)
    assert output.startswith("BROKEN a mix")


# --- listing and removing ---------------------------------------------------------------------


def test_list_artifacts_finds_sound_and_damaged_ones(artifact: Path):
    root = artifact.parent
    store.write_artifact(root / "family" / "small", make_manifest(), populate)
    (artifact / "manifest.json").write_text("damaged")
    (artifact / "weights" / "manifest.json").touch()
    (root / "family" / "notes").mkdir()
    (root / ".model.1-0123abcd.nxdi-new").mkdir()
    (root / ".model.1-0123abcd.nxdi-new" / "manifest.json").touch()
    assert store.list_artifacts(root) == [root / "family" / "small", artifact]
    assert store.list_artifacts(root / "nowhere") == []


def test_remove_artifact(artifact: Path):
    store.remove_artifact(artifact.parent, "model")
    assert not artifact.exists()


@pytest.fixture
def outside(tmp_path: Path) -> tuple[Path, Path]:
    """A root, and an artefact beside it that must survive."""
    store.write_artifact(tmp_path / "outside", make_manifest(), populate)
    root = tmp_path / "root"
    (root / "plain").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "manifest.json").touch()
    return root, tmp_path / "outside"


@pytest.mark.parametrize(
    "name", ["../outside", "link", "plain/../../outside", ".", "", "..", "plain", "x"]
)
def test_nothing_but_artefacts_inside_the_root_is_removed(outside: tuple[Path, Path], name: str):
    root, precious = outside
    before = sorted(root.iterdir())
    with pytest.raises(ArtifactError, match="is no artefact in"):
        store.remove_artifact(root, name)
    with pytest.raises(ArtifactError, match="is no artefact in"):
        store.remove_artifact(root, str(precious))
    store.open_artifact(precious)
    assert sorted(root.iterdir()) == before


def test_a_removal_waits_for_the_writer(artifact: Path):
    with locked(artifact):
        store.remove_artifact(artifact.parent, "model")
    assert not artifact.exists()
