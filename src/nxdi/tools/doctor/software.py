"""Python and the packages nxdi stands on, and the C++ compiler with what it builds."""

from __future__ import annotations

import platform
import subprocess
import tempfile
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from packaging.specifiers import SpecifierSet

import nxdi
from nxdi import env
from nxdi.errors import UnsupportedError
from nxdi.kernels.cpu.linear import load_linear_op
from nxdi.runtime.backends.choice import resolve_backend
from nxdi.tools.doctor.findings import Finding, Section, Verdict, run_checks

# As setup.py declares them.
RANGES = {"torch": ">=2.9", "transformers": ">=4.57,<6"}
PYTHON_RANGE = ">=3.10"

_GET_COMPILER = "install g++ or clang++ with OpenMP (or set CXX)"
_OPENMP_PROGRAM = "#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n"
# Half an ulp of float32 for each of some tens of roundings; a wrong weight changes far more.
_LINEAR_TOLERANCE = 1e-5


def software_section() -> Section:
    """Python, packages, compiler, kernel."""
    packages = [partial(check_package, name, wanted) for name, wanted in RANGES.items()]
    return run_checks(
        "software",
        [check_nxdi, check_python, *packages, check_compiler, check_openmp, check_streaming_kernel],
    )


def check_nxdi() -> Finding:
    return Finding("nxdi", Verdict.NOTE, nxdi.__version__)


def check_python() -> Finding:
    return _in_range("python", platform.python_version(), PYTHON_RANGE)


def check_package(name: str, wanted: str) -> Finding:
    """Whether a package is installed in a version that nxdi is made for."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, Verdict.FAILED, "not installed", f"pip install '{name}{wanted}'")
    return _in_range(name, version, wanted)


def _in_range(name: str, version: str, wanted: str) -> Finding:
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding(name, Verdict.OK, version)
    return Finding(name, Verdict.FAILED, version, f"install a version {wanted}")


def check_compiler() -> Finding:
    """Which C++ compiler builds graphs and kernels."""
    compiler = env.cxx()
    if compiler is None:
        remedy = f'{_GET_COMPILER}, or use backend="eager", which needs none'
        return Finding("C++ compiler", _if_needed(), "none found", remedy)
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return Finding("C++ compiler", Verdict.OK, f"{compiler}: {done.stdout.splitlines()[0]}")


def check_openmp() -> Finding:
    """Whether the compiler builds what uses several threads."""
    compiler = env.cxx()
    if compiler is None:
        return Finding("OpenMP", _if_needed(), "no C++ compiler to ask", _GET_COMPILER)
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder) / "openmp.so")
        command = [compiler, "-fopenmp", "-fPIC", "-shared", "-x", "c++", "-", "-o", library]
        done = subprocess.run(
            command, input=_OPENMP_PROGRAM, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        return Finding("OpenMP", _if_needed(), done.stderr.strip()[-300:], _GET_COMPILER)
    return Finding("OpenMP", Verdict.OK, f"{compiler} -fopenmp builds a library")


def _if_needed() -> Verdict:
    """Of a missing compiler: only the cpu backend cannot do without."""
    return Verdict.FAILED if resolve_backend("auto") == "cpu" else Verdict.WARNING


def check_streaming_kernel() -> Finding:
    """Whether our linear kernel builds, loads and computes what torch computes."""
    name = "streaming linear kernel"
    try:
        kernel = load_linear_op()
    except UnsupportedError as error:
        return Finding(name, Verdict.WARNING, str(error), "without it, decoding is slower")
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(size, generator=generator) for size in ((3, 96), (40, 96)))
    errors = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        held = weight.to(dtype)
        expected = F.linear(x.double(), held.double())
        scale = F.linear(x.double().abs(), held.double().abs())
        errors.append((kernel(x, held) - expected).abs() / scale)
    worst = float(torch.stack(errors).max())  # NaN if any is
    if not worst < _LINEAR_TOLERANCE:
        return Finding(
            name,
            Verdict.FAILED,
            f"its results are off by {worst:.1e}, more than {_LINEAR_TOLERANCE:.0e}",
            "use another C++ compiler (set CXX), and report this",
        )
    return Finding(name, Verdict.OK, f"builds, loads, and is within {worst:.0e} of float64")
