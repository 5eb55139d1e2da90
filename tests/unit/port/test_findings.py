"""The report: every name with its line and what becomes of it."""

from __future__ import annotations

import pytest

from nxdi.port.findings import port
from nxdi.port.names import NOT_HOOKS, OWN_METHODS

SOURCE = """\
import neuronx_distributed as nxd
import nki.isa, torch
from neuronx_distributed_inference.models.config import (
    MultimodalVisionNeuronConfig,
    NeuronConfig,
)
from neuronx_distributed.parallel_layers import parallel_state as ps
from neuronx_distributed.utils import cpu_mode
from neuronx_distributed_inference.models.model_wrapper import ModelWrapper
ps.get_tensor_model_parallel_size()
ps.get_expert_model_parallel_size()
nxd.parallel_layers.layers.SPMDRank.forward
NeuronConfig.from_json
importlib.import_module("neuronx_distributed_inference.modules.gqa_of_mine")
log("neuronx_distributed is old")
"""
C, N = "neuronx_distributed", "neuronx_distributed_inference"


def found(text: str) -> list[tuple[int, str, str]]:
    return [(line, name, status.value) for line, name, status, _ in port(text)[1]]


def test_every_name_is_reported_once_with_its_line() -> None:
    assert found(SOURCE) == [
        (1, C, "supported"),
        (2, "nki.isa", "missing"),
        (4, f"{N}.models.config.MultimodalVisionNeuronConfig", "missing"),
        (5, f"{N}.models.config.NeuronConfig", "supported"),
        (7, f"{C}.parallel_layers.parallel_state", "supported"),
        (8, f"{C}.utils.cpu_mode", "changed"),
        (9, f"{N}.models.model_wrapper.ModelWrapper", "missing"),
        (10, f"{C}.parallel_layers.parallel_state.get_tensor_model_parallel_size", "supported"),
        (11, f"{C}.parallel_layers.parallel_state.get_expert_model_parallel_size", "missing"),
        (12, f"{C}.parallel_layers.layers.SPMDRank", "supported"),
        (14, f"{N}.modules.gqa_of_mine", "missing"),
        (15, C, "changed"),
    ]


def test_the_new_source_comes_with_it() -> None:
    new, findings = port("from neuronx_distributed.utils import cpu_mode")
    assert new == "from nxdi.utils import cpu_mode"
    assert findings[0].note != ""


def test_a_ported_source_is_reported_alike() -> None:
    again = found(port(SOURCE)[0])
    names = [(line, name.replace(N, "nxdi").replace(C, "nxdi"), x) for line, name, x in again]
    before = [(line, n.replace(N, "nxdi").replace(C, "nxdi"), x) for line, n, x in found(SOURCE)]
    unlisted = {"get_expert_model_parallel_size", "gqa_of_mine"}  # may be names of nxdi's own
    listed = [finding for finding in before if finding[1].rpartition(".")[2] not in unlisted]
    assert names == listed


def test_names_of_nxdi_alone_are_not_reported() -> None:
    assert found("from nxdi.modules.norm import RMSNorm\nimport torch\n") == []


def test_star_imports_are_pointed_out() -> None:
    ((_, name, status),) = found(f"from {N}.models.config import *")
    assert (name, status) == (f"{N}.models.config.*", "changed")
    ((_, name, status),) = found(f"from {N}.models.model_wrapper import *")
    assert status == "missing"


@pytest.mark.parametrize(
    "base",
    [
        f"from {N}.models.model_base import NeuronBaseForCausalLM\nclass A(NeuronBaseForCausalLM):",
        f"from {N}.models.model_base import NeuronBaseForCausalLM as B\nclass A(B):",
        f"import {N}.models.model_base as m\nclass A(torch.nn.Module, m.NeuronBaseForCausalLM):",
        f"import {N}.models.model_base\nclass A({N}.models.model_base.NeuronBaseForCausalLM):",
        "from nxdi.models.model_base import NeuronBaseForCausalLM\nclass A(NeuronBaseForCausalLM):",
    ],
    ids=["from", "alias", "module", "dotted", "ported"],
)
def test_methods_that_nothing_calls_are_missing(base: str) -> None:
    body = "\n    def get_model_wrapper_cls(self): ...\n    def own_helper(self): ..."
    derived = "\nclass B(A):\n    def enable_token_generation(self): ..."
    missing = [(line, name) for line, name, status in found(base + body + derived) if "." in name]
    assert (3, "A.get_model_wrapper_cls") in missing
    assert (6, "B.enable_token_generation") in missing
    assert not any("own_helper" in name for _, name in missing)


def test_methods_that_replace_ours_are_pointed_out() -> None:
    text = "from nxdi.models.model_base import NeuronBaseModel as B\nclass A(B):\n"
    text += "    def embed(self): ...\n"
    assert (3, "A.embed", "changed") in found(text)


def test_other_classes_may_have_methods_of_those_names() -> None:
    methods = "".join(f"    def {name}(self): ...\n" for name in [*NOT_HOOKS, *OWN_METHODS.split()])
    assert found(f"import torch\nclass A(torch.nn.Module):\n{methods}") == []
