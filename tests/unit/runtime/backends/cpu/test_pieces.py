from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nxdi.graph.plan import GraphSpec, plan_graphs
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.rope import RotaryEmbedding
from nxdi.runtime.backends.cpu.pieces import (
    Piece,
    example_arguments,
    plan_parts,
    structure,
    tensors_of,
)
from nxdi.types import Phase
from tiny_models import make_app, save_tiny, tiny_hf_model
from tiny_modules import tiny_config


def layer(**options: Any) -> nn.Module:
    attributes = options.pop("attributes", {})
    attention = NeuronAttentionBase(
        tiny_config(),
        **{
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rotary_emb": RotaryEmbedding(4),
            **options,
        },
    )
    config = tiny_config(attributes)
    return PreNormDecoderLayer(config, attention, GatedMLP(config))


def test_alike_layers_have_equal_structures() -> None:
    first, second = layer(), layer()
    nn.init.normal_(first.mlp.up_proj.weight)
    assert structure(first) == structure(second)
    assert hash(structure(first)) == hash(structure(second))


@pytest.mark.parametrize(
    "make",
    [
        lambda: layer(scale=0.3),
        lambda: layer(softcap=5.0),
        lambda: layer(sliding_window=4),
        lambda: layer(has_sinks=True),
        lambda: layer(qkv_bias=True),
        lambda: layer(num_key_value_heads=4),
        lambda: layer(rotary_emb=None),
        lambda: layer(attributes={"rms_norm_eps": 1e-6}),
        lambda: layer(attributes={"hidden_act": "relu"}),
        lambda: layer(attributes={"intermediate_size": 24}),
    ],
)
def test_every_difference_in_what_is_computed_shows(make: Callable[[], nn.Module]) -> None:
    assert structure(make()) != structure(layer())


@dataclass(frozen=True)
class Policy:
    width: int


class Plain(nn.Module):
    """A module with one plain attribute."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value


class Opaque:
    """Says nothing of itself."""


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (1, 2),
        (1, 1.0),
        (1, "1"),
        (True, False),
        (None, 0),
        ([1, 2], (1, 2)),
        ({"a": [1]}, {"a": [2]}),
        (Policy(3), Policy(4)),
        ((Policy(3), 1), (Policy(4), 1)),
        (torch.float32, torch.bfloat16),
        (torch.tensor([1.0, 2]), torch.tensor([1.0, 3])),
        (Opaque(), Opaque()),
        (lambda x: x, lambda x: x),
    ],
)
def test_a_plain_attribute_counts(value: object, other: object) -> None:
    assert structure(Plain(value)) != structure(Plain(other))
    assert structure(Plain(value)) == structure(Plain(value))


def test_equal_values_are_equal_whichever_object_holds_them() -> None:
    assert structure(Plain(Policy(3))) == structure(Plain(Policy(3)))
    assert structure(Plain([1, {"a": 2.5}])) == structure(Plain([1, {"a": 2.5}]))


def test_names_and_dtypes_of_tensors_count_and_their_values_do_not() -> None:
    def module(name: str, dtype: torch.dtype, value: float) -> nn.Module:
        made = nn.Module()
        made.register_parameter(name, nn.Parameter(torch.full((2,), value, dtype=dtype)))
        return made

    base = structure(module("a", torch.float32, 0.0))
    assert structure(module("a", torch.float32, 1.0)) == base
    assert structure(module("b", torch.float32, 0.0)) != base
    assert structure(module("a", torch.float16, 0.0)) != base


def test_the_class_counts() -> None:
    class Derived(Plain):
        pass

    assert structure(Derived(1)) != structure(Plain(1))


def test_derived_buffers_are_inputs_of_a_piece() -> None:
    """Layers that differ in the values of their rotary tables may share one piece."""
    names = tensors_of(layer())
    assert "self_attn.rotary_emb.inv_freq" in names
    assert "mlp.up_proj.weight" in names


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, GraphSpec]]:
    """The module of one phase of a tiny model without memory, and its graph."""

    def build(family: str, phase: Phase, **overrides: Any) -> tuple[Any, GraphSpec]:
        folder = save_tiny(tiny_hf_model(family, **overrides), tmp_path_factory.mktemp(family))
        options = {"windowed_context_encoding_size": 8, "speculation_length": 3}
        app = make_app(folder, seq_len=16, batch_size=2, **options)
        return app.build(phase), plan_graphs(app.neuron_config).of(phase)[0]

    return build


@pytest.mark.parametrize("phase", list(Phase))
def test_alike_layers_share_a_piece(build: Callable[..., Any], phase: Phase) -> None:
    model, spec = build("llama", phase, num_hidden_layers=3)
    parts = plan_parts(model, spec)
    assert [part.piece for part in parts] == [
        *[f"{spec.name}/layer0"] * 3,
        f"{spec.name}/head",
    ]
    assert [part.caches for part in parts] == [slice(0, 2), slice(2, 4), slice(4, 6), slice(0, 0)]
    assert [part.owner for part in parts[:3]] == list(model.layers)


def test_kinds_of_layers_have_pieces_of_their_own(build: Callable[..., Any]) -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    options = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    model, spec = build("qwen2", Phase.DECODE, num_hidden_layers=3, layer_types=kinds, **options)
    pieces = [part.piece.rsplit("/", 1)[1] for part in plan_parts(model, spec)]
    assert pieces == ["layer0", "layer1", "layer0", "head"]


def test_the_head_takes_no_tensors_per_token(build: Callable[..., Any]) -> None:
    model, spec = build("llama", Phase.PREFILL)
    head = plan_parts(model, spec)[-1]
    assert [item.name for item in head.inputs] == ["seq_ids"]
    assert sorted(tensors_of(head.owner)) == ["lm_head.weight", "norm.weight"]


def test_a_model_with_a_forward_of_its_own_is_one_piece(build: Callable[..., Any]) -> None:
    model, spec = build("llama", Phase.DECODE)

    class Own(type(model)):  # type: ignore[misc]  # the class of a built model
        def forward(self, *args: Any) -> Any:
            return super().forward(*args)

    model.__class__ = Own
    (part,) = plan_parts(model, spec)
    assert part.piece == f"{spec.name}/whole"
    assert part.owner is model
    assert part.caches == slice(0, 4)
    leading, *_ = example_arguments(model, part, spec)
    assert leading == []


def test_a_piece_has_no_tensors_of_its_own_and_writes_the_caches_it_is_given(
    build: Callable[..., Any],
) -> None:
    model, spec = build("llama", Phase.DECODE)
    part = plan_parts(model, spec)[0]
    piece = Piece(part)
    assert piece.state_dict() == {}
    leading, inputs, caches, weights = example_arguments(model, part, spec)
    for tensor in [*leading, *weights]:
        nn.init.normal_(tensor)
    for cache in caches:
        cache.fill_(torch.nan)
    input_ids, position_ids, seq_ids = inputs
    input_ids.zero_()
    position_ids.copy_(torch.tensor([[3], [-1]]))
    seq_ids.copy_(torch.arange(2))
    (out,) = piece(leading, inputs, caches, weights)
    assert out.shape == (2, 1, 64)
    for cache in caches:
        changed: Tensor = (~cache.isnan()).any(dim=-1).any(dim=1).nonzero()
        assert changed.tolist() == [[0, 3], [1, 16]]
