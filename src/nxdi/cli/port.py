"""`nxdi port`: make model sources written for NxD Inference import from nxdi."""

from __future__ import annotations

import argparse
import difflib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.absent import GUIDE

if TYPE_CHECKING:
    from nxdi.port.files import PortedFile

EXIT_MISSING = 1


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "port",
        help="port model sources written for NxD Inference",
        description="Rename the imports of neuronx_distributed_inference and neuronx_distributed "
        "to nxdi, and report every name used: supported, changed or missing. Nothing is imported "
        "or run. Without --write or --out, only show what would change.",
        epilog=f"Exit code 1 if a name is missing or a file could not be ported. See {GUIDE}.",
    )
    parser.add_argument("path", metavar="FILE_OR_FOLDER", type=Path)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--write", action="store_true", help="edit the files in place")
    where.add_argument("--out", type=Path, metavar="DIR", help="write a copy; must not exist")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, no diff")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Port, report. Returns: the exit code."""
    from nxdi.port.files import port_path, write_copy, write_in_place

    files = port_path(args.path)
    if args.write:
        write_in_place(files)
    elif args.out is not None:
        write_copy(args.path, args.out, files)
    report = _as_json(files) if args.json else _as_text(files, not (args.write or args.out))
    for line in report:
        print(line)
    is_clean = not _count(files)["missing"] and not any(file.error for file in files)
    return 0 if is_clean else EXIT_MISSING


def _count(files: list[PortedFile]) -> Counter[str]:
    return Counter(finding.status.value for file in files for finding in file.findings)


def _as_json(files: list[PortedFile]) -> Iterator[str]:
    listed = [
        {
            "path": str(file.path),
            "rewritten": file.is_changed,
            "error": file.error or None,
            "findings": [finding._asdict() for finding in file.findings],
        }
        for file in files
    ]
    count = _count(files)
    summary = {status: count[status] for status in ("supported", "changed", "missing")}
    yield json.dumps({"files": listed, "summary": summary}, indent=2)


def _as_text(files: list[PortedFile], with_diff: bool) -> Iterator[str]:
    for file in files if with_diff else []:
        yield from _diff(file)
    for file in files:
        for line, name, status, note in file.findings:
            yield f"{file.path}:{line}: {status.value:<9}  {name}{note and ': '}{note}"
    for file in files:
        if file.error:
            yield f"{file.path}: not ported: {file.error}"
    count = _count(files)
    rewritten = sum(file.is_changed for file in files)
    yield (
        f"{rewritten} of {len(files)} files {'would change' if with_diff else 'changed'}; names: "
        f"{count['supported']} supported, {count['changed']} changed, {count['missing']} missing"
    )


def _diff(file: PortedFile) -> Iterator[str]:
    lines = difflib.unified_diff(
        file.old.splitlines(), file.new.splitlines(), str(file.path), str(file.path), lineterm=""
    )
    yield from lines
