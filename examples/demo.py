"""From nothing to an answer: fetch a model, compile it, reload it in a new process, and ask it.

A second run finds what the first one left and is faster; the table at the end says by how much.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable

from fetch_smollm2 import DEMO_DIR, fetch_gguf, fetch_smollm2

QUESTION = "What is the capital of France?"
MODEL_OPTIONS = ["--dtype", "float32"]
FIRST_RUN = DEMO_DIR / "first-run.json"


def run_nxdi(*words: str) -> None:
    """Run the `nxdi` command in a process of its own, and show it."""
    print("$", shlex.join(["nxdi", *words]), flush=True)
    subprocess.run([sys.executable, "-m", "nxdi", *words], check=True)


def print_times(times: dict[str, float]) -> None:
    """Print the seconds of each stage, beside those of the first run if this is a later one."""
    first = json.loads(FIRST_RUN.read_text()) if FIRST_RUN.exists() else None
    FIRST_RUN.write_text(json.dumps(first or times))
    print("\nseconds     this run" + ("   first run" if first else ""))
    for name, seconds in times.items():
        print(f"{name:10}{seconds:10.1f}" + (f"{first[name]:12.1f}" if first else ""))
    if first:
        ratio = times["total"] / first["total"]
        print(f"this run took {ratio:.0%} of the time of the first one")


def main() -> None:
    """Run the stages and time each."""
    model = str(DEMO_DIR / "SmolLM2-135M-Instruct")
    compiled = str(DEMO_DIR / "compiled")
    load = ["--artifact-dir", compiled]
    stages: dict[str, Callable[[], object]] = {
        "download": fetch_gguf,
        "convert": fetch_smollm2,
        "compile": lambda: run_nxdi("compile", model, *MODEL_OPTIONS, "--out", compiled),
        "answer": lambda: run_nxdi("chat", model, *MODEL_OPTIONS, *load, "--prompt", QUESTION),
    }
    times = {}
    for name, stage in stages.items():
        start = time.perf_counter()
        stage()
        times[name] = time.perf_counter() - start
    print_times({**times, "total": sum(times.values())})


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"demo: this command failed: {shlex.join(error.cmd)}")
