from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from nxdi.models.auto import AutoModelForCausalLM
from nxdi.models.registry import ARCHITECTURES
from nxdi.tools.doctor import examine, self_check
from nxdi.tools.doctor.findings import Section, Verdict
from nxdi.tools.doctor.tiny_models import MODELS, write_model

examine_module = importlib.import_module("nxdi.tools.doctor.examine")  # not the function


@pytest.fixture
def all_eager(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every model is loaded eagerly; yields the backends that were asked for."""
    asked = []
    original: Any = AutoModelForCausalLM.from_pretrained

    def load(*args: Any, backend: str, **options: Any) -> Any:
        asked.append(backend)
        return original(*args, backend="eager", **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    return asked


def test_equal_results_pass(all_eager: list[str]) -> None:
    finding = self_check.check_model("LlamaForCausalLM")
    assert (finding.name, finding.verdict) == ("LlamaForCausalLM", Verdict.OK)
    assert "12 tokens equal" in finding.found
    assert all_eager == ["auto", "eager"]


def test_every_architecture_has_a_model() -> None:
    assert MODELS.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("architecture", MODELS)
def test_no_model_is_a_constant(architecture: str, tmp_path: Path) -> None:
    write_model(tmp_path, architecture)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, backend="eager", seq_len=32)
    logits = self_check.generate(model)
    assert len(set(logits.argmax(dim=1).tolist())) >= 3
    assert logits.abs().max() > 1


@pytest.mark.parametrize("step", [0, 5])
def test_another_token_fails(step: int) -> None:
    expected = torch.eye(12, 61)
    got = expected.clone()
    got[step, 60] = 2
    finding = self_check.compare("a model", "cpu", got, expected)
    assert (finding.name, finding.verdict) == ("a model", Verdict.FAILED)
    assert f"[{step}]" in finding.found


@pytest.mark.parametrize("wrong", [0.1, torch.nan])
def test_other_logits_fail_though_tokens_are_equal(wrong: float) -> None:
    expected = torch.eye(12, 61)
    assert self_check.compare("a model", "cpu", expected, expected).verdict is Verdict.OK
    got = expected.clone()
    got[3, 60] = wrong
    assert self_check.compare("a model", "cpu", got, expected).verdict is Verdict.FAILED


def test_a_check_that_cannot_run_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, architecture: str) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(self_check, "write_model", broken)
    section = self_check.self_check_section()
    assert not section.is_healthy
    assert section.findings[0].name == "model LlamaForCausalLM"
    assert "no room" in section.findings[0].found


def test_the_self_check_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hardware", "software", "neuron", "self_check"):
        section = Section(name, ())
        monkeypatch.setattr(examine_module, f"{name}_section", lambda section=section: section)
    titles = [section.title for section in examine()]
    assert titles == ["hardware", "software", "neuron", "self_check"]
    assert [section.title for section in examine(self_check=False)] == titles[:3]
