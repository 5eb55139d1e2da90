"""Many processes that want the same model compiled at the same moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_models import save_tiny, tiny_hf_model

NUM_PROCESSES = 8
PROGRAM = """
import json, sys, torch
torch.set_num_threads(1)
import nxdi
from nxdi.runtime.backends.cpu import compiler
compiled, compile_one = [], compiler._compile
def counted(*args):
    compiled.append(1)
    return compile_one(*args)
compiler._compile = counted
model = nxdi.AutoModelForCausalLM.from_pretrained(
    sys.argv[1], artifact_dir=sys.argv[2], seq_len=32, max_context_length=16, torch_dtype="float32"
)
logits = model(torch.arange(10)[None]).logits
print(json.dumps({"compiled": len(compiled), "token": int(logits.argmax())}))
"""


@pytest.mark.slow
def test_eight_processes_compile_once(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("llama"), tmp_path / "model")
    environment = {**os.environ, "NXDI_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder), str(tmp_path / "out")]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(NUM_PROCESSES)
    ]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * NUM_PROCESSES
    results = [json.loads(output.splitlines()[-1]) for output in outputs]
    # Three pieces (prefill layer, decode layer, head), each compiled by exactly one process.
    assert sum(result["compiled"] for result in results) == 3
    assert len({result["token"] for result in results}) == 1
