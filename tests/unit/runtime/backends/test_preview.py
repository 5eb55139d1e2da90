"""The kernels that a plan names against those that the export of each piece gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nxdi.kernels.registry import Choice, below
from nxdi.runtime.backends.cpu import compiler
from nxdi.runtime.backends.cpu.pieces import Piece, example_arguments, plan_parts
from nxdi.runtime.backends.preview import preview_kernels
from tiny_eagle import KINDS, load_head, save_agreeing
from tiny_models import make_app, save_tiny, tiny_hf_model

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Windows, whose layers differ from the others.
    model = tiny_hf_model("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    return save_tiny(model, tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture
def no_native_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pieces are exported and given their kernels, and then not compiled."""
    monkeypatch.setattr(compiler, "get_or_build", lambda key, build: tmp_path)


@pytest.mark.usefixtures("no_native_code")
@pytest.mark.parametrize(("dtype", "tp_degree"), [("float32", 1), ("bfloat16", 2)])
def test_the_same_choices_as_compiling(dtype: str, tp_degree: int, saved: Path) -> None:
    app = make_app(
        saved,
        backend="cpu",
        torch_dtype=dtype,
        tp_degree=tp_degree,
        seq_len=512,
        max_context_length=300,
        enable_bucketing=True,
        context_encoding_buckets=[16, 300],
        token_generation_buckets=[32, 512],
    )
    program = app.program()
    made: dict[str, set[Choice]] = {}
    for spec in app.plan.graphs:
        model = program.build(spec.phase)
        for part in plan_parts(model, spec):
            arguments = example_arguments(model, part, spec)
            choices = compiler.compile_piece(Piece(part), arguments, part.owner)[1]
            made.setdefault(spec.name, set()).update(below(part.path, choices))
    planned = {name: set(choices) for name, choices in preview_kernels(program, "cpu").items()}
    assert planned == made
    layers = {
        (choice.op, choice.layer.rpartition(".")[2])
        for choices in planned.values()
        for choice in choices
    }
    assert layers == {
        ("attend", "self_attn"),
        *((f"{dtype} linear", name) for name in LINEARS),
    }
    assert len({frozenset(choices) for choices in planned.values()}) > 1  # lengths matter


def test_the_eager_backend_uses_generic_kernels_and_torch_for_the_rest(saved: Path) -> None:
    program = make_app(saved, seq_len=32).program()
    for choices in preview_kernels(program, "eager").values():
        assert {choice.op for choice in choices} == {"attend"}
        assert all(choice.refused == () for choice in choices)


def test_no_other_import_is_needed_for_the_cpu_kernels() -> None:
    script = """
from nxdi.runtime.backends import preview
from nxdi.kernels import registry
assert len(registry._KERNELS["attend", "cpu"]) == 2, registry._KERNELS
"""
    path = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=path)


def test_a_neuron_device_has_kernels_for_attention(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nxdi.kernels.neuron.op.missing_compiler", lambda: None)
    app = make_app(saved, backend="cpu", torch_dtype="bfloat16", seq_len=64, max_context_length=32)

    def attending(**options: bool) -> list[set[str]]:
        previewed = preview_kernels(app.program(), "neuron", options)
        return [
            {choice.chosen for choice in previewed[spec.name] if choice.op == "attend"}
            for spec in app.plan.graphs
        ]

    prefill, decode = "nxdi_nki::attention_prefill", "nxdi_nki::attention_decode"
    assert attending() == [{prefill}, {decode}]
    assert attending(attn_kernel_enabled=False) == [{"explicit"}, {decode}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_reads_features(kind: str, tmp_path: Path) -> None:
    """EAGLE-3's layer gives half of what it is given."""
    options = {"seq_len": 32, "max_context_length": 8, **KINDS[kind]}
    _, folder, head_folder = save_agreeing(tmp_path, **KINDS[kind])
    head = load_head(head_folder, folder, **options)
    planned = preview_kernels(head.program(), "cpu")
    assert planned.keys() == {graph.name for graph in head.plan.graphs}
    assert all("attend" in {choice.op for choice in choices} for choices in planned.values())
