"""Compile a folder of C++ sources into a shared library, once per type of machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from pathlib import Path

import torch
from filelock import FileLock

from nxdi import env
from nxdi.errors import UnsupportedError

_REMEDY = (
    "install g++ or clang++ with OpenMP (or set CXX), "
    "or do without: torch's own operators give the same results, slower"
)
LIBRARY_NAME = "kernels.so"
_LOG_TAIL = 2000  # characters of a failed compiler's output that an error shows


def build_library(folder: Path) -> Path:
    """One library of all `*.cpp` in `folder`, which may use its `*.h` and torch's stable C ABI.

    It comes from the cache, or is compiled now: of all processes that ask for the same library,
    one compiles it and the others wait.

    Raises: UnsupportedError if there is no working C++ compiler, with the end of its output.
    """
    sources, headers = sorted(folder.glob("*.cpp")), sorted(folder.glob("*.h"))
    compiler = env.cxx()
    if compiler is None:
        raise UnsupportedError(f"kernels need a C++ compiler, none was found; {_REMEDY}")
    command = [compiler, *_flags()]
    # The predefined macros tell the compiler's version and every CPU feature it will use.
    macros = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])
    texts = [f"{path.name}\0{path.read_text(encoding='utf-8')}" for path in [*sources, *headers]]
    key = hashlib.sha256("\0".join([*texts, *command, macros, torch.__version__]).encode())
    library = env.cache_dir() / "kernels" / key.hexdigest() / LIBRARY_NAME
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):
            if not library.exists():
                unfinished = library.with_suffix(".tmp")
                _run([*command, *map(str, sources), "-o", str(unfinished), *_link_flags()])
                os.replace(unfinished, library)
    except OSError as error:
        raise UnsupportedError(
            f"cannot keep the compiled kernels in {library.parent}: {error}; "
            "set NXDI_CACHE_DIR to a folder that can be written"
        ) from error
    return library


def _flags() -> list[str]:
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    include = Path(torch.__file__).parent / "include"
    return ["-std=c++17", "-O3", native, "-w", "-fPIC", "-shared", "-fopenmp", f"-I{include}"]


def _link_flags() -> list[str]:
    return [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]


def _run(command: list[str]) -> str:
    """Standard output of a compiler command. Raises: UnsupportedError if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UnsupportedError(f"cannot run the C++ compiler: {error}; {_REMEDY}") from error
    if done.returncode != 0:
        raise UnsupportedError(
            f"{command[0]} could not compile the kernels; {_REMEDY}. "
            f"The end of its output:\n{done.stderr[-_LOG_TAIL:].strip()}"
        )
    return done.stdout
