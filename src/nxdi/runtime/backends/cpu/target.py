"""The machine that graphs are compiled for, and the compiler that does it."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from pathlib import Path

import torch

from nxdi import env
from nxdi.errors import UnsupportedError


@functools.cache
def cpu_target() -> str:
    """The CPU type that native code is tied to: architecture, vectors, hash of its features."""
    flags = ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    digest = hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:12]
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {digest}"


@functools.cache
def compiler_version() -> str:
    """First line of `--version` of the C++ compiler. Raises: UnsupportedError if there is none."""
    compiler = env.cxx()
    if compiler is None:
        raise UnsupportedError(
            "compiling for the CPU needs a C++ compiler and none was found; install g++ or clang++ "
            '(or set CXX), or use backend="eager", which needs none and gives the same tokens'
        )
    shown = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return shown.stdout.splitlines()[0] if shown.stdout else compiler
