"""The proof: a tiny random model, compiled and run, gives the tokens that it gives eagerly."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nxdi.models.auto import AutoModelForCausalLM
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.runtime.checkpoint import write_safetensors
from nxdi.runtime.estimate import checkpoint_on_meta
from nxdi.runtime.weights import model_tensors
from nxdi.tools.doctor.findings import Finding, Section, Verdict, run_checks
from nxdi.types import Phase

_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_OPTIONS: dict[str, Any] = {"seq_len": 32, "torch_dtype": "float32", "skip_warmup": True}
_PROMPT_LEN, _NEW_TOKENS = 7, 12
_TOLERANCE = 1e-3  # of logits of about 5; other rounding moves them by some 1e-5


def self_check_section() -> Section:
    """One check: compile and compare."""
    return run_checks("self-check", [check_compiled_model])


def check_compiled_model() -> Finding:
    """Whether the backend that `auto` stands for gives the results of the eager one."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(folder)
        models = {
            backend: AutoModelForCausalLM.from_pretrained(
                folder,
                artifact_dir=folder / backend,
                progress=False,
                backend=backend,
                **_OPTIONS,
            )
            for backend in ("auto", "eager")
        }
        logits = {name: generate(model) for name, model in models.items()}
        return compare(models["auto"].backend.name, logits["auto"], logits["eager"])


def compare(backend: str, got: Tensor, expected: Tensor) -> Finding:
    """The verdict on the logits of each step [steps, vocab_size]."""
    name = "compiled against eager"
    error = float((got - expected).abs().max())
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


def write_model(folder: Path) -> None:
    """A tiny Llama with weights wide enough that its tokens depend on all of it."""
    (folder / "config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")
    model_cls = AutoModelForCausalLM.class_for(folder)
    config_cls = model_cls.get_config_cls()
    app = model_cls(folder, neuron_config=config_cls.get_neuron_config_cls()(**_OPTIONS))
    shapes = checkpoint_on_meta(model_tensors(app.build(Phase.DECODE)), torch.float32)
    generator = torch.Generator().manual_seed(0)
    weights = {name: _draw(tensor.shape, generator) for name, tensor in shapes.items()}
    write_safetensors(folder / "model.safetensors", weights)


def _draw(shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    return noise * 1.6 / shape[-1] ** 0.5 if len(shape) > 1 else 1 + 0.1 * noise


def generate(model: NeuronBaseForCausalLM) -> Tensor:
    """The logits of each step of a greedy generation [steps, vocab_size]."""
    ids = torch.arange(_PROMPT_LEN)[None] * 8 % _CONFIG["vocab_size"]
    steps: list[Tensor] = []
    for position in range(_PROMPT_LEN, _PROMPT_LEN + _NEW_TOKENS):
        logits = model(ids, position_ids=None if not steps else torch.tensor([[position - 1]]))
        assert logits.logits is not None
        steps.append(logits.logits[0, -1])
        ids = steps[-1].argmax().view(1, 1)
    return torch.stack(steps)
