"""`nxdi doctor`: what was found on this machine, and whether nxdi works on it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nxdi.tools.doctor import Section

EXIT_FAILED = 1


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this machine",
        description="Look at the machine and its software, then compile and run a tiny model (on a "
        "Neuron device one of every architecture) and compare it with its eager execution. "
        "Exit code 1 if something that nxdi needs is missing or wrong.",
    )
    parser.add_argument("--quick", action="store_true", help="leave out compiling tiny models")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings as they come, or all of them as JSON. Returns: the exit code."""
    from nxdi.tools.doctor import examine

    sections = []
    for section in examine(self_check=not args.quick):
        sections.append(section)
        if not args.json:
            print("\n".join(_lines(section)), flush=True)
    is_healthy = all(section.is_healthy for section in sections)
    if args.json:
        shown = {"is_healthy": is_healthy, "sections": [asdict(section) for section in sections]}
        print(json.dumps(shown, indent=1))
    else:
        print("nxdi works here" if is_healthy else "something nxdi needs has failed, see above")
    return 0 if is_healthy else EXIT_FAILED


def _lines(section: Section) -> Iterator[str]:
    yield section.title
    for finding in section.findings:
        yield f"  {finding.verdict.value:8} {finding.name}: {finding.found}"
        if finding.remedy:
            yield f"           -> {finding.remedy}"
