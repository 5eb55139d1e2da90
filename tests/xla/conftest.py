"""Every graph of every family as HLO, made once per family and tensor-parallel degree."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.tools.lowering.lower import Lowered, lower_graph
from tiny_models import make_app, save_tiny, tiny_hf_model

if find_spec("torch_xla") is None:  # `make test-xla` has it
    collect_ignore_glob = ["test_*.py"]

# Two layers, windows and buckets of both kinds, greedy tokens in the graph.
PLAN: dict[str, Any] = {
    "seq_len": 32,
    "max_context_length": 16,
    "batch_size": 2,
    "enable_bucketing": True,
    "context_encoding_buckets": [16],
    "token_generation_buckets": [16, 32],
    "on_device_sampling_config": {"do_sample": False},
    "output_logits": True,
}
Apps = Callable[..., NeuronBaseForCausalLM]
Graphs = Callable[[str, int], dict[str, Lowered]]


@pytest.fixture(scope="session")
def app_of(tmp_path_factory: pytest.TempPathFactory) -> Apps:
    """The eager model of a family at a degree, with more options if given; not loaded."""
    folders: dict[str, Path] = {}

    def get(family: str, tp_degree: int, **options: Any) -> NeuronBaseForCausalLM:
        if family not in folders:
            folders[family] = save_tiny(tiny_hf_model(family), tmp_path_factory.mktemp(family))
        return make_app(folders[family], tp_degree=tp_degree, **{**PLAN, **options})

    return get


def lower_all(app: NeuronBaseForCausalLM) -> dict[str, Lowered]:
    """Every graph of a model, by name."""
    program = app.program()
    return {spec.name: lower_graph(program, spec, app.num_ranks) for spec in app.plan.graphs}


@pytest.fixture(scope="session")
def graphs_of(app_of: Apps) -> Graphs:
    """The lowered graphs of a family at a degree, by name."""
    made: dict[tuple[str, int], dict[str, Lowered]] = {}

    def get(family: str, tp_degree: int) -> dict[str, Lowered]:
        if (family, tp_degree) not in made:
            made[family, tp_degree] = lower_all(app_of(family, tp_degree))
        return made[family, tp_degree]

    return get
