"""One rank of some models under torchrun: `gloo_program.py BACKEND FOLDER...`.

Each folder holds a model and `reference.pt`, and is left with an artefact. Fails on any rank whose
logits or tokens differ from the reference. Run by `test_gloo`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from golden.parity import BUCKETS, Reference, check_generate, check_prefill
from nxdi import AutoModelForCausalLM
from nxdi.parallel_layers.groups import DistributedWorld

# One graph of each phase where compiling costs seconds.
FEW = {"context_encoding_buckets": [64], "token_generation_buckets": [96]}


def check(folder: Path, backend: str) -> None:
    """Compile once for all ranks, load, and compare; then show that the comparison can fail."""
    reference = Reference.load(folder, folder / "reference.pt")
    app = AutoModelForCausalLM.from_pretrained(
        folder,
        artifact_dir=folder / f"torchrun-{backend}",
        backend=backend,
        tp_degree=2,
        batch_size=3,
        torch_dtype=reference.dtype,
        **{**BUCKETS, **(FEW if backend == "cpu" else {})},
    )
    assert isinstance(app.runner.world, DistributedWorld)
    check_prefill(app, reference, [17, 64, 1], "right")
    check_generate(app, reference, [32, 17, 31], "left")
    reference.tokens[17][-1] += 1
    try:
        check_generate(app, reference, [17], "left")
    except AssertionError:
        return
    raise AssertionError("a wrong token was not noticed")


if __name__ == "__main__":
    for name in sys.argv[2:]:
        check(Path(name), sys.argv[1])
    torch.distributed.destroy_process_group()
