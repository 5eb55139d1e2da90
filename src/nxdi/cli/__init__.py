"""The `nxdi` command: one module per subcommand, and what they share.

Nothing here imports torch before a subcommand runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nxdi._version import __version__
from nxdi.cli import (
    bench,
    cache,
    chat,
    check,
    compile,
    convert_gguf,
    doctor,
    estimate,
    generate,
    info,
    lower,
    port,
    quantize,
)
from nxdi.errors import NxdiError

EXIT_BAD_REQUEST = 2  # what argparse exits with as well
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_EPILOG = """\
exit codes:
  0    done
  1    unexpected failure, with a traceback; of `port`: a name is missing; of `doctor`:
       something that nxdi needs has failed; of `check`: the model differs
  2    the request cannot be met; one line on stderr says why and what to change
  130  interrupted
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="nxdi",
        description="Compile large language models into static graphs, and run them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nxdi {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (
        compile,
        generate,
        chat,
        bench,
        check,
        info,
        estimate,
        doctor,
        lower,
        cache,
        convert_gguf,
        quantize,
        port,
    ):
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns: the exit code."""
    args = make_parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except NxdiError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_REQUEST
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
