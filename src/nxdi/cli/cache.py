"""`nxdi cache`: see, check and empty the folder where compiled graphs are kept."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nxdi import env
from nxdi.cli.format import format_size
from nxdi.errors import ArtifactError, ConfigError


def add_parser(subparsers: Any) -> None:
    """Add the subcommand and its three actions."""
    parser = subparsers.add_parser(
        "cache",
        help="list, check or remove compiled graphs",
        description="The cache is the folder NXDI_CACHE_DIR names, by default ~/.cache/nxdi.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    ls = actions.add_parser("ls", help="list artefacts and shared pieces with size and date")
    ls.set_defaults(run=run_ls)
    rm = actions.add_parser("rm", help="remove artefacts, or everything")
    which = rm.add_mutually_exclusive_group(required=True)
    which.add_argument("names", nargs="*", default=[], metavar="NAME", help="as `ls` shows it")
    which.add_argument("--all", action="store_true", help="remove everything in the cache")
    rm.set_defaults(run=run_rm)
    verify = actions.add_parser("verify", help="check every byte of artefacts; exit code 2 if bad")
    verify.add_argument("names", nargs="*", metavar="NAME", help="as `ls` shows it (default: all)")
    verify.set_defaults(run=run_verify)


def run_ls(args: argparse.Namespace) -> None:
    """One line for each artefact, and one for each other kind of content."""
    from nxdi.runtime.store import list_artifacts

    root = env.cache_dir()
    print(root)
    artifacts = list_artifacts(root)
    for path in artifacts:
        print(_describe(path.relative_to(root).as_posix(), path))
    for path in _entries(root):
        if path.is_dir() and not any(artifact.is_relative_to(path) for artifact in artifacts):
            print(_describe(f"{path.name}/", path))


def run_rm(args: argparse.Namespace) -> None:
    """Remove the named artefacts, or all there is."""
    from nxdi.runtime.files import remove_directory
    from nxdi.runtime.store import remove_artifact

    root = env.cache_dir()
    for name in args.names:
        remove_artifact(root, name)
        print(f"removed {name}")
    if args.all:
        for path in _entries(root):
            if path.is_dir():
                remove_directory(path)
                print(f"removed {path.name}/")


def run_verify(args: argparse.Namespace) -> None:
    """Check artefacts, say of each whether it is sound.

    Raises: ConfigError for an unknown name, ArtifactError if any is damaged.
    """
    from nxdi.runtime.store import list_artifacts, open_artifact

    root = env.cache_dir()
    known = {path.relative_to(root).as_posix(): path for path in list_artifacts(root)}
    bad = []
    for name in args.names or known:
        if name not in known:
            raise ConfigError(f"{name!r} is no artefact in {root}; `nxdi cache ls` shows the names")
        try:
            open_artifact(known[name])
            print(f"sound    {name}")
        except ArtifactError as error:
            print(f"damaged  {name}: {error}")
            bad.append(name)
    if bad:
        raise ArtifactError(f"{len(bad)} damaged; remove them with: nxdi cache rm {' '.join(bad)}")


def _entries(root: Path) -> Sequence[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if not path.name.startswith("."))


def _describe(name: str, folder: Path) -> str:
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    size = format_size(sum(file.st_size for file in files))
    newest = max((file.st_mtime for file in files), default=folder.stat().st_mtime)
    return f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(newest))}  {size:>9}  {name}"
