"""The proof: tiny random models, compiled and run, give the tokens that they give eagerly."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nxdi.models.auto import AutoModelForCausalLM
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.runtime.backends.choice import resolve_backend
from nxdi.tools.doctor.findings import Finding, Section, Verdict, run_checks
from nxdi.tools.doctor.tiny_models import MODELS, VOCAB_SIZE, write_model

_OPTIONS: dict[str, Any] = {"seq_len": 32, "torch_dtype": "float32", "skip_warmup": True}
_PROMPT_LEN, _NEW_TOKENS = 7, 12
_TOLERANCE = 2e-4  # of the largest logit; other rounding moves them by some 1e-6 of it
_FIRST = "LlamaForCausalLM"


def self_check_section() -> Section:
    """Compile and compare: one model on a CPU; on a device every architecture, and two ranks."""
    if resolve_backend("auto") == "cpu":
        return run_checks("self-check", [partial(check_model, _FIRST)])
    each = [partial(check_model, architecture) for architecture in MODELS]
    return run_checks("self-check", [*each, partial(check_model, _FIRST, 2)])


def check_model(architecture: str, tp_degree: int = 1) -> Finding:
    """Whether the backend that `auto` stands for gives the results of the eager one."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(folder, architecture)
        models = {
            backend: AutoModelForCausalLM.from_pretrained(
                folder,
                artifact_dir=folder / backend,
                progress=False,
                backend=backend,
                tp_degree=tp_degree,
                **_OPTIONS,
            )
            for backend in ("auto", "eager")
        }
        logits = {name: generate(model) for name, model in models.items()}
    ranks = "" if tp_degree == 1 else f", {tp_degree} ranks"
    backend = models["auto"].backend.name
    return compare(f"{architecture}{ranks}", backend, logits["auto"], logits["eager"])


def compare(name: str, backend: str, got: Tensor, expected: Tensor) -> Finding:
    """The verdict on the logits of each step [steps, vocab_size]."""
    error = float((got - expected).abs().max() / expected.abs().max())
    wrong = (got.argmax(dim=1) != expected.argmax(dim=1)).nonzero().flatten().tolist()
    if wrong or not error < _TOLERANCE:
        return Finding(
            name,
            Verdict.FAILED,
            f"{backend}: tokens differ at steps {wrong}, logits by up to {error:.1e}",
            "`nxdi cache rm --all` and try again; if it fails again, report it with this output",
        )
    return Finding(
        name, Verdict.OK, f"{backend}: {len(got)} tokens equal, logits within {error:.0e}"
    )


def generate(model: NeuronBaseForCausalLM) -> Tensor:
    """The logits of each step of a greedy generation [steps, vocab_size]."""
    ids = torch.arange(_PROMPT_LEN)[None] * 8 % VOCAB_SIZE
    steps: list[Tensor] = []
    for position in range(_PROMPT_LEN, _PROMPT_LEN + _NEW_TOKENS):
        logits = model(ids, position_ids=None if not steps else torch.tensor([[position - 1]]))
        assert logits.logits is not None
        steps.append(logits.logits[0, -1])
        ids = steps[-1].argmax().view(1, 1)
    return torch.stack(steps)
