"""One process per rank under torchrun, over gloo: each has transformers' logits and tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from golden import gloo_program, table
from golden.parity import Reference

CASES = [
    ("eager", table.TORCHRUN),
    pytest.param("cpu", table.TORCHRUN[:1], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("backend", "names"), CASES)
def test_every_rank_agrees_with_transformers(
    backend: str, names: tuple[str, ...], reference_of: Callable[[str], Reference]
) -> None:
    references = [reference_of(name) for name in names]
    for reference in references:
        reference.save(reference.folder / "reference.pt")
    folders = [str(reference.folder) for reference in references]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(gloo_program.__file__), backend, *folders],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
