"""Compiled graphs give the same logits and tokens: each family, phase, cache layout, 1 and 2 ranks.

Compiling takes seconds per distinct piece, so here is one graph of each phase; `test_parity` has
the matrix. Cases share what they compile through the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from golden import table
from golden.parity import Reference, check_generate, check_prefill, load
from golden.table import BY_NAME
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.llama.modeling_llama import NeuronLlamaForCausalLM, NeuronLlamaModel
from tiny_models import COMPILED, make_app

Get = Callable[[str], Reference]

LENGTHS = [32, 17, 1]
RELOAD = """
import json, sys
import torch
from nxdi import AutoModelForCausalLM
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
prompt, num_new = torch.tensor([json.loads(sys.argv[2])]), int(sys.argv[3])
generate = HuggingFaceGenerationAdapter(model).generate
tokens = generate(prompt, max_new_tokens=num_new, do_sample=False)
print(tokens[0, -num_new:].tolist())
"""


pytestmark = pytest.mark.usefixtures("two_threads")

CASES = [*table.CPU, *(pytest.param(*case, marks=pytest.mark.slow) for case in table.CPU_SLOW)]


@pytest.mark.parametrize(("name", "tp_degree"), CASES)
def test_compiled_graphs(name: str, tp_degree: int, reference_of: Get) -> None:
    reference = reference_of(name)
    app = load(reference, tp_degree, **COMPILED)
    check_prefill(app, reference, [31, 32, 15], "right")
    check_generate(app, reference, LENGTHS, "left")


def make(reference: Reference, **options: Any) -> NeuronBaseForCausalLM:
    """The model of the compiled cases, to be compiled elsewhere."""
    return make_app(reference.folder, torch_dtype=reference.dtype, **{**COMPILED, **options})


def test_a_new_process_reloads_what_another_compiled(reference_of: Get, tmp_path: Path) -> None:
    """With prefill rows enough for every linear kernel: 3 x 96 tokens."""
    reference = reference_of("qwen2")
    app = make(reference, max_context_length=96, context_encoding_buckets=[96])
    app.compile(tmp_path / "artifact", progress=False)
    arguments = [tmp_path / "artifact", json.dumps(reference.prompts[17].tolist()), 32]
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == reference.tokens[17].tolist()


def test_weights_kept_in_the_artefact(reference_of: Get, tmp_path: Path) -> None:
    """With the ranks' weights in the artefact, the checkpoint is not needed to load it."""
    reference = reference_of("mistral")
    app = make(reference, tp_degree=2, save_sharded_checkpoint=True)
    app.compile(tmp_path / "artifact", progress=False)
    files = sorted(path.name for path in (tmp_path / "artifact" / "weights").iterdir())
    assert files == [f"tp{rank}_sharded_checkpoint.safetensors" for rank in (0, 1)]
    app.rank_weights = None  # type: ignore[assignment,method-assign]  # nothing may read the checkpoint
    app.load(tmp_path / "artifact")
    check_generate(app, reference, LENGTHS, "right")


class WholeGraphModel(NeuronLlamaModel):
    """Its forward is its own, so that a backend cannot take it apart."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class WholeGraphForCausalLM(NeuronLlamaForCausalLM):
    _model_cls = WholeGraphModel


@pytest.mark.slow
def test_a_model_with_a_forward_of_its_own_is_one_graph(reference_of: Get, tmp_path: Path) -> None:
    reference = reference_of("llama")
    app: NeuronBaseForCausalLM = WholeGraphForCausalLM(reference.folder, make(reference).config)
    app.compile(tmp_path / "artifact", progress=False)
    app.load(tmp_path / "artifact")
    check_generate(app, reference, LENGTHS, "left")


def test_every_family_is_compiled() -> None:
    compiled = (*table.CPU, *table.CPU_SLOW)
    assert {BY_NAME[name].family for name, _ in compiled} == set(table.FAMILIES)
