from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nxdi.errors import ConfigError, ShapeError
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.modules.attention import AttentionOutput
from nxdi.tools.accuracy.tensors import (
    activation_of,
    capture_tensors,
    replace_tensors,
    with_activation,
)

PROMPT = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def prefill(app: NeuronBaseForCausalLM) -> Tensor:
    logits = app(PROMPT).logits
    assert logits is not None
    return logits


def decode(app: NeuronBaseForCausalLM) -> None:
    app(torch.tensor([[7], [8]]), position_ids=torch.tensor([[5], [5]]))


def test_one_dictionary_for_each_graph_run(app: NeuronBaseForCausalLM) -> None:
    with capture_tensors(app, ["layers.*.mlp", "norm"]) as steps:
        app(PROMPT)
        decode(app)
    # ctx_batch_size is 2: one prefill for both rows.
    assert [list(step) for step in steps] == [["layers.0.mlp", "layers.1.mlp", "norm"]] * 2
    assert steps[0]["layers.0.mlp"].shape == (2, 16, 64)
    assert steps[1]["layers.0.mlp"].shape == (2, 1, 64)
    app(PROMPT)
    assert len(steps) == 2


def test_inputs_are_captured_on_request(app: NeuronBaseForCausalLM) -> None:
    with capture_tensors(app, ["layers.1", "layers.0"], capture_inputs=True) as steps:
        app(PROMPT)
    assert set(steps[0]) == {"layers.0", "layers.0.input", "layers.1", "layers.1.input"}
    assert torch.equal(steps[0]["layers.0"], steps[0]["layers.1.input"])
    assert not torch.equal(steps[0]["layers.0"], steps[0]["layers.0.input"])


def test_what_is_captured_can_be_put_back(app: NeuronBaseForCausalLM) -> None:
    before = prefill(app)
    with capture_tensors(app, ["layers.0.self_attn"]) as steps:
        app(PROMPT)
    with replace_tensors(app, {"layers.0.self_attn": steps[0]["layers.0.self_attn"]}):
        assert torch.equal(prefill(app), before)
    with replace_tensors(app, {"layers.0.self_attn": lambda x: 2 * x}):
        assert not torch.allclose(prefill(app), before, atol=0.1)
    assert torch.equal(prefill(app), before)


def test_angles_are_one_tensor(app: NeuronBaseForCausalLM) -> None:
    name = "layers.0.self_attn.rotary_emb"
    with capture_tensors(app, [name]) as steps:
        before = prefill(app)
    assert steps[0][name].shape == (2, 16, 32)
    with replace_tensors(app, {name: steps[0][name]}):
        assert torch.equal(prefill(app), before)


def test_a_replacement_has_the_shape_of_the_output(app: NeuronBaseForCausalLM) -> None:
    with (
        replace_tensors(app, {"norm": torch.zeros(2, 1, 63)}),
        pytest.raises(ShapeError, match=r"\(2, 1, 63\).*\(2, 1, 64\)"),
    ):
        app(PROMPT)


def test_an_unknown_name_is_refused_with_what_is_near(app: NeuronBaseForCausalLM) -> None:
    with (
        pytest.raises(ConfigError, match=r"'layers\.0\.self_atn'; near are layers\.0\.self_attn"),
        capture_tensors(app, ["layers.0.self_atn"]),
    ):
        pass


def test_compiled_graphs_are_refused(folder: Path, app: NeuronBaseForCausalLM) -> None:
    app.runner.executables, kept = [*app.runner.executables, object()], app.runner.executables  # type: ignore[list-item]  # no EagerRank
    try:
        with pytest.raises(ConfigError, match="load it with backend='eager'"):
            capture_tensors(app, ["norm"]).__enter__()
    finally:
        app.runner.executables = kept


def test_the_forms_of_what_a_module_returns() -> None:
    x, y = torch.ones(2, 3), torch.zeros(2, 3)
    rest = torch.ones(5)
    attention = AttentionOutput(x)
    for output in (x, (x, rest, None), attention):
        assert activation_of(output) is x
        changed = with_activation(output, y)
        assert type(changed) is type(output)
        assert activation_of(changed) is y
    assert with_activation((x, rest), y)[1] is rest
    assert activation_of(None) is None
    assert activation_of({"x": x}) is None
