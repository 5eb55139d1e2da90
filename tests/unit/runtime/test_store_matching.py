"""What decides whether an artefact fits: versions, platform, config, fingerprint of the weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nxdi.errors import ArtifactError
from nxdi.runtime import store

EXPECTED = {
    "library_version": "0.1.0",
    "torch_version": "2.13.0",
    "platform": "cpu avx2",
    "backend": "cpu",
    "config": {"hidden_size": 64, "neuron_config": {"tp_degree": 2, "buckets": (128, 256)}},
    "weights_fingerprint": "ab" * 32,
}

MANIFEST = store.Manifest(
    library_version="0.1.0",
    torch_version="2.13.0",
    compiler_version="g++ 12.2.0",
    platform="cpu avx2",
    backend="cpu",
    config={"hidden_size": 64, "neuron_config": {"tp_degree": 2, "buckets": [128, 256]}},
    graphs=[],
    kernels=[],
    weights={"fingerprint": "ab" * 32, "source": "model"},
)


def test_an_artefact_matches_what_it_was_built_for():
    store.check_matches(MANIFEST, EXPECTED)
    store.check_matches(MANIFEST, EXPECTED | {"weights_fingerprint": None})


@pytest.mark.parametrize("name", ["library_version", "torch_version", "platform", "backend"])
def test_each_version_and_platform_decides(name: str):
    with pytest.raises(ArtifactError, match=f"  {name}: built for '.*', asked for 'other'"):
        store.check_matches(MANIFEST, EXPECTED | {name: "other"})


def test_all_differences_are_listed_with_the_remedy():
    neuron_config = {"tp_degree": 4, "buckets": [128]}
    asked = EXPECTED | {
        "weights_fingerprint": "cd" * 32,
        "config": {"hidden_size": 64, "neuron_config": neuron_config, "vocab_size": 8},
    }
    with pytest.raises(ArtifactError) as caught:
        store.check_matches(MANIFEST, asked)
    assert str(caught.value).splitlines() == [
        "the artefact does not fit:",
        "  config.neuron_config.buckets: built for [128, 256], asked for [128]",
        "  config.neuron_config.tp_degree: built for 2, asked for 4",
        "  config.vocab_size: built for '(absent)', asked for 8",
        f"  weights_fingerprint: built for '{'ab' * 32}', asked for '{'cd' * 32}'",
        "compile it again with model.compile(path)",
    ]


@pytest.mark.parametrize("ignored", ["config.neuron_config.tp_degree", "config.neuron_config"])
def test_ignored_values_do_not_decide(ignored: str):
    config = {"hidden_size": 64, "neuron_config": {"tp_degree": 4, "buckets": [128, 256]}}
    store.check_matches(MANIFEST, EXPECTED | {"config": config}, ignore=[ignored])
    with pytest.raises(ArtifactError, match="tp_degree"):
        store.check_matches(
            MANIFEST, EXPECTED | {"config": config}, ignore=["config.neuron_config.tp"]
        )


def test_difference_of_nested_dicts():
    assert store.difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 2.0}) == []
    assert store.difference({"a": {"b": 1}}, {"a": {"b": None}}) == [
        "a.b: built for 1, asked for None"
    ]
    assert store.difference({"a": {"b": 1}}, {"a": 1}) == ["a: built for {'b': 1}, asked for 1"]


# --- fingerprints -----------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("NXDI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_SETTLED_NS", -(10**18))
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path in paths:
        path.write_bytes(path.name.encode() * 10)
    return paths


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content was read to be hashed."""
    names: list[str] = []
    real = store.sha256_file

    def spy(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(store, "sha256_file", spy)
    return names


def test_a_fingerprint_depends_on_names_and_contents_only(shards: list[Path], tmp_path: Path):
    fingerprint = store.weights_fingerprint(shards)
    assert store.weights_fingerprint(shards[::-1]) == fingerprint
    moved = [tmp_path / "moved" / path.name for path in shards]
    moved[0].parent.mkdir()
    for old, new in zip(shards, moved, strict=True):
        new.write_bytes(old.read_bytes())
    assert store.weights_fingerprint(moved) == fingerprint
    assert store.weights_fingerprint(shards[:1]) != fingerprint
    renamed = moved[0].rename(tmp_path / "moved" / "c.safetensors")
    assert store.weights_fingerprint([renamed, moved[1]]) != fingerprint


def test_contents_are_hashed_once(shards: list[Path], hashed: list[str]):
    first = store.weights_fingerprint(shards)
    assert sorted(hashed) == ["a.safetensors", "b.safetensors"]
    assert store.weights_fingerprint(shards) == first
    assert len(hashed) == 2


def test_a_changed_file_is_hashed_again_even_if_size_and_time_stay(
    shards: list[Path], hashed: list[str]
):
    first, stat = store.weights_fingerprint(shards), shards[0].stat()
    data = bytearray(shards[0].read_bytes())
    data[0] ^= 1
    shards[0].write_bytes(data)
    os.utime(shards[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.weights_fingerprint(shards) != first
    assert hashed[2:] == ["a.safetensors"]


def test_a_file_that_has_just_changed_is_not_remembered(
    shards: list[Path], hashed: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "_SETTLED_NS", 10**18)
    assert store.weights_fingerprint(shards) == store.weights_fingerprint(shards)
    assert len(hashed) == 4


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
):
    real = store.sha256_file

    def change_after_reading(path: Path) -> str:
        digest = real(path)
        path.write_bytes(b"changed")
        return digest

    with monkeypatch.context() as patched:
        patched.setattr(store, "sha256_file", change_after_reading)
        before = store.weights_fingerprint(shards)
    after = store.weights_fingerprint(shards)
    assert after != before
    assert store.weights_fingerprint(shards) == after


@pytest.mark.parametrize("damage", [b"", b"\xff\xff", b"0 0", b"0" * 64 + b" " + b"0" * 64, None])
def test_a_damaged_note_is_ignored_and_mended(
    shards: list[Path], hashed: list[str], tmp_path: Path, damage: bytes | None
):
    first = store.weights_fingerprint(shards)
    notes = list((tmp_path / "cache" / "hashes").iterdir())
    assert len(notes) == 2
    for note in notes:
        data = note.read_bytes()
        note.write_bytes(data.translate(bytes.maketrans(b"0", b"1")) if damage is None else damage)
    assert store.weights_fingerprint(shards) == first
    assert store.weights_fingerprint(shards) == first
    assert len(hashed) == 4


def test_a_note_of_another_file_is_ignored(shards: list[Path], hashed: list[str], tmp_path: Path):
    first = store.weights_fingerprint(shards)
    one, two = (tmp_path / "cache" / "hashes").iterdir()
    one.write_bytes(two.read_bytes())
    assert store.weights_fingerprint(shards) == first
    assert len(hashed) == 3


def test_without_a_cache_folder_fingerprints_still_work(shards: list[Path], tmp_path: Path):
    (tmp_path / "cache").write_text("in the way")
    assert store.weights_fingerprint(shards) == store.weights_fingerprint(shards)


def test_a_missing_checkpoint_file_is_named(shards: list[Path]):
    shards[1].unlink()
    with pytest.raises(ArtifactError, match=r"b\.safetensors"):
        store.weights_fingerprint(shards)
