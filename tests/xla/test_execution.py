"""The lowered graphs compute what the eager backend computes, on one XLA:CPU device per rank."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nxdi.graph.plan import GraphSpec
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.tools.lowering.lower import Lowered
from tiny_models import FAMILIES
from tolerances import XLA_FP32
from xla.conftest import Apps, Graphs, lower_all

pytestmark = [
    pytest.mark.xla,
    pytest.mark.skipif(find_spec("jax") is None, reason="needs jax: run `make test-xla`"),
]

NUM_RANKS, NUM_DECODES = 2, 8
RUN_HLO = Path(__file__).parent / "run_hlo.py"


@dataclass
class Recorded:
    """One prefill and some decode steps as the eager backend ran them."""

    steps: list[tuple[GraphSpec, dict[str, Tensor]]]
    logits: list[Tensor]
    caches: list[list[Tensor]]  # of each rank, after the last step


def record(app: NeuronBaseForCausalLM, folder: Path) -> Recorded:
    app.compile(folder, progress=False)
    app.load(folder)
    app.reset()
    done = Recorded([], [], [])

    def observe(spec: GraphSpec, inputs: Mapping[str, Tensor]) -> None:
        done.steps.append((spec, {name: x.clone() for name, x in inputs.items()}))

    app.runner.observers.append(observe)
    ids = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))
    output = app(ids)
    positions = torch.full((2, 1), 12)
    for _ in range(NUM_DECODES):
        done.logits.append(output.logits[:, -1])
        output = app(output.tokens.view(2, 1), position_ids=positions)
        positions = positions + 1
    done.logits.append(output.logits[:, -1])
    done.caches = [[x.clone() for x in rank.caches] for rank in app.runner.executables]
    return done


def run_lowered(
    app: NeuronBaseForCausalLM, graphs: Mapping[str, Lowered], recorded: Recorded, folder: Path
) -> dict[str, Tensor]:
    """What the lowered graphs return for the recorded inputs; see run_hlo.py."""
    module: Any = app.build(recorded.steps[0][0].phase)
    computed = {n: b for n, b in module.named_buffers() if not b.is_meta}
    empty = app.program().make_caches(module)
    for rank, weights in enumerate(app.rank_weights(tuple(range(NUM_RANKS)))):
        tensors = {f"model.{name}": x for name, x in {**computed, **weights}.items()}
        tensors |= {f"cache_{i}": x for i, x in enumerate(empty)}
        copies = {name: x.contiguous().clone() for name, x in tensors.items()}
        save_file(copies, folder / f"rank{rank}.safetensors")
    used = {spec.name: graphs[spec.name] for spec, _ in recorded.steps}
    for name, lowered in used.items():
        (folder / f"{name}.hlo").write_bytes(lowered.proto)
    request = {
        "num_ranks": NUM_RANKS,
        "steps": [spec.name for spec, _ in recorded.steps],
        "graphs": {
            name: {
                "parameters": _named(lowered),
                "inputs": [item.name for item in lowered.spec.inputs],
                "outputs": lowered.spec.outputs,
                "aliases": {n: lowered.parameters[p] for n, p in lowered.aliases.items()},
            }
            for name, lowered in used.items()
        },
    }
    (folder / "request.json").write_text(json.dumps(request))
    constants = {
        f"{name}.constant{number}": value
        for name, lowered in used.items()
        for number, value in lowered.constants.items()
    }
    save_file(constants, folder / "constants.safetensors")
    inputs = {
        f"{step}.{name}": x for step, (_, of) in enumerate(recorded.steps) for name, x in of.items()
    }
    save_file(inputs, folder / "inputs.safetensors")
    command = [sys.executable, str(RUN_HLO), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "outputs.safetensors")


def _named(lowered: Lowered) -> list[str]:
    return [
        f"{lowered.spec.name}.constant{number}" if name == "constant" else name
        for number, name in enumerate(lowered.parameters)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_equal_the_eager_backend(
    family: str, app_of: Apps, graphs_of: Graphs, tmp_path: Path
) -> None:
    check(app_of(family, NUM_RANKS), graphs_of(family, NUM_RANKS), tmp_path)


@pytest.mark.parametrize("option", ["sequence_parallel_enabled", "vocab_parallel"])
def test_the_other_collectives(option: str, app_of: Apps, tmp_path: Path) -> None:
    app = app_of("llama", NUM_RANKS, **{option: True})
    check(app, lower_all(app), tmp_path)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize(
    "options",
    [
        {"windowed_context_encoding_size": 8},
        {"windowed_context_encoding_size": 8, "is_block_kv_layout": True, "pa_block_size": 4},
    ],
    ids=["rows", "blocks"],
)
def test_prompts_in_pieces(
    options: dict[str, Any], family: str, app_of: Apps, tmp_path: Path
) -> None:
    app = app_of(family, NUM_RANKS, **options)
    check(app, lower_all(app), tmp_path, num_pieces=2)


def check(
    app: NeuronBaseForCausalLM, graphs: Mapping[str, Lowered], folder: Path, num_pieces: int = 1
) -> None:
    recorded = record(app, folder / "eager")
    found = run_lowered(app, graphs, recorded, folder)
    assert len(recorded.steps) == num_pieces + NUM_DECODES
    expected = {
        f"{step}.{rank}.logits": x
        for step, x in enumerate(recorded.logits, start=num_pieces - 1)
        for rank in range(NUM_RANKS)
    }
    for rank, caches in enumerate(recorded.caches):
        expected |= {f"{rank}.cache_{index}": x for index, x in enumerate(caches)}
    errors = {name: _error(found[name], x) for name, x in expected.items()}
    print(f"{app.config.model_type}: largest error {max(errors.values()):.1e}")
    assert {name: error for name, error in errors.items() if error > XLA_FP32} == {}


def _error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference per largest magnitude."""
    difference = (actual.view_as(expected) - expected).abs().max() / expected.abs().max()
    return difference.item()
