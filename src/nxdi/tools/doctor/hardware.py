"""The CPU, the cache folder, and the backend that `auto` stands for."""

from __future__ import annotations

import shutil
import tempfile

import torch

from nxdi import env
from nxdi.runtime.backends.choice import resolve_backend
from nxdi.runtime.backends.cpu.target import cpu_target
from nxdi.runtime.backends.neuron import probe
from nxdi.tools.doctor.findings import Finding, Section, Verdict, run_checks
from nxdi.tools.machine import cpu_features, cpu_model, memory_bytes, num_cores

_LOW_SPACE = 2_000_000_000  # bytes; compiled graphs and kernels of a few models


def hardware_section() -> Section:
    """CPU, threads, memory, cache folder, backend."""
    return run_checks(
        "machine", [check_cpu, check_threads, check_memory, check_cache_folder, check_backend]
    )


def check_cpu() -> Finding:
    features = " ".join(cpu_features()) or "no features known to matter"
    capability = torch.backends.cpu.get_cpu_capability()
    return Finding("CPU", Verdict.NOTE, f"{cpu_model()}; {features}; torch uses {capability}")


def check_threads() -> Finding:
    """More threads than cores wait for each other."""
    threads, cores = torch.get_num_threads(), num_cores()
    found = f"{threads} on {cores} cores"
    if threads > cores:
        remedy = f"set OMP_NUM_THREADS={cores}: threads that share a core are many times slower"
        return Finding("threads", Verdict.WARNING, found, remedy)
    return Finding("threads", Verdict.OK, found)


def check_memory() -> Finding:
    memory = memory_bytes()
    found = "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"
    return Finding("memory", Verdict.NOTE, found)


def check_cache_folder() -> Finding:
    """Compiled graphs and kernels go there."""
    folder = env.cache_dir()
    remedy = "set NXDI_CACHE_DIR to a folder that can be written"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"nxdi")
    except OSError as error:
        return Finding(
            "cache folder", Verdict.FAILED, f"{folder} cannot be written: {error}", remedy
        )
    free = shutil.disk_usage(folder).free
    found = f"{folder}, {free / 1e9:.1f} GB free"
    if free < _LOW_SPACE:
        return Finding("cache folder", Verdict.WARNING, found, f"`nxdi cache rm`, or {remedy}")
    return Finding("cache folder", Verdict.OK, found)


def check_backend() -> Finding:
    """What `backend="auto"` is here, and why."""
    name, devices = resolve_backend("auto"), probe.neuron_devices()
    problem = probe.sdk_problem()
    if name == "neuron":
        reason = f"{len(devices)} Neuron devices and a fitting SDK are here"
    elif devices:
        reason = f"there are Neuron devices, but {problem}"
    else:
        reason = f"no Neuron device is here; graphs are compiled for {cpu_target()}"
    verdict = Verdict.WARNING if devices and problem else Verdict.NOTE
    return Finding("backend auto", verdict, f"{name}: {reason}")
