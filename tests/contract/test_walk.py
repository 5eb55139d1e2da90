"""The walk of one request: which functions serve it, in which order; docs/walk.md says the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nxdi.graph.plan import GraphPlan
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.model_base import NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.attention.attend import Attend
from nxdi.modules.attention.projections import QKVProjection
from nxdi.modules.context import LayerContext
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.runtime import runner
from nxdi.runtime.backends.eager import EagerRank
from nxdi.runtime.runner import Runner
from tiny_models import load_app, save_tiny, tiny_hf_model

# Of one step, outside the graph ...
STEP = [
    "NeuronBaseForCausalLM.forward",
    "Runner.step",
    "GraphPlan.choose",
    "pad_step",
    "RankExecutable",
    "unpad_step",
]
# ... inside the graph ...
GRAPH = ["embed", "layer 0", "layer 1", "last_hidden", "head"]
# ... and inside the attention of a layer.
ATTENTION = [
    "qkv_proj",
    "split_heads",
    "apply_rotary_embedding",
    "append",
    "attend",
    "merge_and_project",
]

FUNCTIONS: dict[str, tuple[Any, str]] = {
    "NeuronBaseForCausalLM.forward": (NeuronBaseForCausalLM, "forward"),
    "Runner.step": (Runner, "step"),
    "GraphPlan.choose": (GraphPlan, "choose"),
    "pad_step": (runner, "pad_step"),
    "RankExecutable": (EagerRank, "__call__"),
    "unpad_step": (runner, "unpad_step"),
    "embed": (NeuronBaseModel, "embed"),
    "last_hidden": (NeuronBaseModel, "last_hidden"),
    "head": (NeuronBaseModel, "head"),
    "qkv_proj": (QKVProjection, "forward"),
    "split_heads": (NeuronAttentionBase, "split_heads"),
    "apply_rotary_embedding": (NeuronAttentionBase, "apply_rotary_embedding"),
    "append": (LayerContext, "append"),
    "attend": (Attend, "__call__"),
    "merge_and_project": (NeuronAttentionBase, "merge_and_project"),
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> NeuronBaseForCausalLM:
    folder = save_tiny(tiny_hf_model("llama"), tmp_path_factory.mktemp("llama"))
    return load_app(folder, seq_len=16)


@pytest.fixture
def walk(app: NeuronBaseForCausalLM, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions above, as they are called."""
    seen: list[str] = []

    def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return function(*args, **kwargs)

        return call

    for name, (owner, attribute) in FUNCTIONS.items():
        monkeypatch.setattr(owner, attribute, recorded(name, getattr(owner, attribute)))
    forward = PreNormDecoderLayer.forward

    def layer(self: PreNormDecoderLayer, x: torch.Tensor, *, ctx: LayerContext) -> torch.Tensor:
        seen.append(f"layer {ctx.layer}")
        return forward(self, x, ctx=ctx)

    monkeypatch.setattr(PreNormDecoderLayer, "forward", layer)
    return seen


def only(walk: list[str], names: list[str]) -> list[str]:
    return [name for name in walk if name in names]


STEPS = {
    "prefill": {"input_ids": torch.tensor([[3, 1, 4]])},
    "decode": {"input_ids": torch.tensor([[5]]), "position_ids": torch.tensor([[3]])},
}


@pytest.mark.parametrize("step", STEPS)
def test_one_step(app: NeuronBaseForCausalLM, walk: list[str], step: str) -> None:
    app(**STEPS[step])
    assert only(walk, STEP) == STEP
    assert only(walk, GRAPH) == GRAPH
    assert only(walk, ATTENTION) == ATTENTION * 2


def test_the_graph_runs_within_the_executable(app: NeuronBaseForCausalLM, walk: list[str]) -> None:
    app(**STEPS["prefill"])
    middle = walk.index("RankExecutable")
    assert walk[:middle] == STEP[: STEP.index("RankExecutable")]
    assert walk[-1] == STEP[-1]
    assert walk[middle + 1 : -1] == [
        "embed",
        *("layer 0", *ATTENTION),
        *("layer 1", *ATTENTION),
        "last_hidden",
        "head",
    ]


def test_the_documentation_tells_the_same_walk() -> None:
    text = (Path(__file__).parents[2] / "docs/walk.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\d+)\. (.+)$", text, flags=re.MULTILINE)
    assert headings == [(str(number), name) for number, name in enumerate(STEP, start=1)]
    told = re.findall(r"`(?:ctx\.)?(\w+)`", text)
    assert only(told, ATTENTION) == ATTENTION
    assert only(told, GRAPH) == ["embed", "last_hidden", "head"]
