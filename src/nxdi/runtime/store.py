"""Artefacts on disk: a folder of compiled graphs, and a manifest of what is in it and what for.

Nothing is believed. Opening an artefact checks every byte of it against the manifest, and
`check_matches` checks that the manifest describes the model it is about to be used for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from tqdm import tqdm

from nxdi import env
from nxdi.errors import ArtifactError
from nxdi.runtime.files import (
    atomic_directory,
    canonical_json,
    explain_os_errors,
    hash_files,
    list_files,
    recover,
    remove_directory,
    sha256_file,
)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

# NxDI scripts save the tokenizer into the folder they compile to. Such files stay the user's:
# carried over when the artefact is rewritten, and no part of what is verified.
_USER_FILES = (  # how their names begin
    *("tokenizer", "special_tokens_map", "added_tokens", "vocab.", "merges.", "spiece."),
    *("sentencepiece", "chat_template", "additional_chat_templates", "generation_config"),
    *("preprocessor_config", "processor_config"),
)
_RECOMPILE = "compile it again with model.compile(path)"
_SETTLED_NS = 2_000_000_000  # a younger file may change again within the same time stamp
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class Manifest:
    """What an artefact holds and what it was built for; every value is plain JSON.

    platform: device and capabilities the graphs need.  config: the whole InferenceConfig.
    graphs: each GraphSpec.
    kernels: `{op, chosen, is_reference, refused: {name: reason}, layers}`.
    weights: `fingerprint` (of `weights_fingerprint`), source, files.
    files: `{relative name: {sha256, size}}`, filled in by `write_artifact`.
    """

    library_version: str
    torch_version: str
    compiler_version: str
    platform: str
    backend: str
    config: dict[str, Any]
    graphs: list[dict[str, Any]]
    kernels: list[dict[str, Any]]
    weights: dict[str, Any]
    files: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def encode(self) -> bytes:
        """The bytes of `manifest.json`, which hold their own sha256."""
        body = asdict(self)
        body["sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
        return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read what `encode` wrote. Raises: ValueError if a single bit of it has changed."""
        body = json.loads(data)
        if not isinstance(body, dict) or body.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"its schema version is not {SCHEMA_VERSION}, the one known here")
        body.pop("sha256", None)
        types = {name: get_origin(hint) or hint for name, hint in get_type_hints(cls).items()}
        wrong = body.keys() ^ types.keys()
        wrong |= {name for name in types if not isinstance(body.get(name), types[name])}
        if wrong:
            raise ValueError(f"unknown, missing or wrong fields: {sorted(wrong)}")
        manifest = cls(**body)
        if manifest.encode() != data:
            raise ValueError("its checksum is wrong")
        return manifest


def write_artifact(target: Path, manifest: Manifest, populate: Callable[[Path], None]) -> Manifest:
    """Write an artefact: `populate(folder)` makes the files, the manifest is written last.

    Returns: the manifest with the hashes of the files.
    Raises: ArtifactError if `target` holds something else than an artefact, or on a disk error.
    After any failure, and after a kill, `target` is what it was before.
    """
    with atomic_directory(target) as folder:
        for path in _user_files(target):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, folder / path.name)
        populate(folder)
        written = replace(manifest, files=hash_files(_own_files(folder)))
        (folder / MANIFEST).write_bytes(written.encode())
    return written


def open_artifact(path: Path) -> Manifest:
    """Verify every file of an artefact and return its manifest.

    Raises: ArtifactError that names the missing, damaged or unlisted file.
    """
    return load_artifact(path, lambda manifest: manifest)


def load_artifact(path: Path, load: Callable[[Manifest], _Loaded]) -> _Loaded:
    """Verify an artefact and return what `load` makes of it, all from one and the same artefact.

    Needs no lock, so works on a read-only disk. If another process replaces the artefact
    meanwhile, it starts again with the new one.

    Raises: ArtifactError that names the missing, damaged or unlisted file; what `load` raises.
    """
    recover(path)
    before = _identity(path)
    try:
        loaded = load(_verify(path))
    except Exception:
        if _identity(path) == before:
            raise
    else:
        if _identity(path) == before:
            return loaded
    return load_artifact(path, load)


def read_manifest(path: Path) -> Manifest:
    """The manifest of an artefact, checked against its own checksum only."""
    file = path / MANIFEST
    if not file.is_file():
        raise ArtifactError(f"{path}: no compiled artefact, {MANIFEST} is missing; {_RECOMPILE}")
    with explain_os_errors(file):
        data = file.read_bytes()
    try:
        return Manifest.decode(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file}: not a sound manifest: {error}; {_RECOMPILE}") from error


def check_matches(
    manifest: Manifest, expected: Mapping[str, Any], ignore: Collection[str] = ()
) -> None:
    """Check that an artefact was built for what is asked of it now.

    expected: library_version, torch_version, platform, backend, config, weights_fingerprint
        (None: the weights are not compared).
    ignore: names of values or groups that change neither graphs nor results, such as
        "config.transformers_version".
    Raises: ArtifactError with a line for each difference.
    """
    deciding = ("library_version", "torch_version", "platform", "backend", "config")
    built = {name: getattr(manifest, name) for name in deciding}
    built["weights_fingerprint"] = manifest.weights.get("fingerprint")
    assert expected.keys() == built.keys()
    asked = json.loads(canonical_json(dict(expected)))  # as the manifest spells it: no tuples
    if asked["weights_fingerprint"] is None:
        del built["weights_fingerprint"], asked["weights_fingerprint"]
    ignored = tuple(name + end for name in ignore for end in ":.")
    if lines := [line for line in difference(built, asked) if not line.startswith(ignored)]:
        listing = "\n  ".join(lines)
        raise ArtifactError(f"the artefact does not fit:\n  {listing}\n{_RECOMPILE}")


def difference(built: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name: built for X, asked for Y` for each value in which two nested dicts differ."""
    lines = []
    for key in sorted(built.keys() | asked.keys()):
        old, new = (side.get(key, "(absent)") for side in (built, asked))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += difference(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: built for {old!r}, asked for {new!r}")
    return lines


def weights_fingerprint(files: Collection[Path]) -> str:
    """sha256 over name, size and content of each checkpoint file, in any order and folder.

    Hashes of contents are remembered in the cache folder: a checkpoint is read once.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = pool.map(_remembered_hash, files)
        shown = tqdm(hashes, "hash weights", total=len(files), delay=1, disable=None)
        return hashlib.sha256(canonical_json(sorted(shown))).hexdigest()


def list_artifacts(root: Path) -> list[Path]:
    """Folders under `root` that hold a manifest, sound or not."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if MANIFEST in names:
            found.append(Path(folder))
            subfolders.clear()
    return sorted(found)


def remove_artifact(root: Path, name: str) -> None:
    """Delete the artefact `root/name`.

    Raises: ArtifactError if it is no artefact, or not inside `root` once links are followed.
    """
    inside, target = Path(os.path.realpath(root)), Path(os.path.realpath(root / name))
    if inside not in target.parents or not (target / MANIFEST).is_file():
        raise ArtifactError(f"{name!r} is no artefact in {root}; give a name `nxdi cache ls` shows")
    remove_directory(target)


def _verify(path: Path) -> Manifest:
    present = _own_files(path)
    manifest = read_manifest(path)
    present.pop(MANIFEST, None)
    # Only names found in the folder are opened: a listed name cannot lead out of it.
    if unlisted := present.keys() - manifest.files.keys():
        raise ArtifactError(f"{path}: {min(unlisted)!r} is not listed in {MANIFEST}; delete it")
    if missing := manifest.files.keys() - present.keys():
        raise ArtifactError(f"{path}: {min(missing)!r} is missing from the folder; {_RECOMPILE}")
    for name, record in hash_files(present).items():
        if record != manifest.files[name]:
            raise ArtifactError(f"{present[name]}: damaged, not what was written; {_RECOMPILE}")
    return manifest


def _own_files(folder: Path) -> dict[str, Path]:
    files = list_files(folder)
    return {name: path for name, path in files.items() if not name.startswith(_USER_FILES)}


def _user_files(target: Path) -> list[Path]:
    """Entries of `target` to carry over. Raises: ArtifactError if it may not be replaced."""
    entries = list(target.iterdir()) if target.exists() else []
    kept = [path for path in entries if path.name.startswith(_USER_FILES)]
    strays = {path.name for path in entries} - {path.name for path in kept}
    if strays and MANIFEST not in strays:
        raise ArtifactError(
            f"{target}: holds {min(strays)!r} and no {MANIFEST}, so it is no artefact to replace; "
            "choose another folder, or delete this one"
        )
    return kept


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remembered_hash(file: Path) -> tuple[str, int, str]:
    """Name, size and sha256 of a file; the hash is noted under the file's path and times."""
    with explain_os_errors(file):
        found = file.stat()
        size, times = found.st_size, (found.st_mtime_ns, found.st_ctime_ns)
        identity = canonical_json([os.path.realpath(file), size, times, found.st_ino])
        note = env.cache_dir() / "hashes" / hashlib.sha256(identity).hexdigest()
        with suppress(OSError, ValueError):  # no note, or a damaged one
            digest, check = note.read_text("ascii").split()
            if check == _note_check(note, digest):
                return file.name, size, digest
        digest = sha256_file(file)
        if time.time_ns() - max(times) > _SETTLED_NS:
            with suppress(OSError):  # only the speed of the next start depends on the note
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(f"{digest} {_note_check(note, digest)}", "ascii")
    return file.name, size, digest


def _note_check(note: Path, digest: str) -> str:
    return hashlib.sha256(f"{note.name} {digest}".encode()).hexdigest()
