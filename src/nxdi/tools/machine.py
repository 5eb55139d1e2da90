"""Facts about the machine and the software on it, for reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from nxdi._version import __version__

# Features that decide which kernels run, by the names of /proc/cpuinfo.
_FEATURES = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)


def machine_facts() -> dict[str, str]:
    """What the machine is and what runs on it, by name."""
    memory = memory_bytes()
    return {
        "cpu": cpu_model(),
        "cpu features": " ".join(cpu_features()) or "unknown",
        "cores": str(num_cores()),
        "threads": str(torch.get_num_threads()),
        "memory": "unknown" if memory is None else f"{memory / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "nxdi": __version__,
    }


def cpu_model() -> str:
    """The name the CPU gives itself."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """The features of this CPU that matter for kernels."""
    present = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    return [name for name in _FEATURES if name in present]


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Memory of the machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _cpuinfo(key: str) -> str | None:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return None
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
