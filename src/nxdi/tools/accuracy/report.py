"""One check of a model folder against transformers, in up to three modes, and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import nn

from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.tools.accuracy import layers, logits
from nxdi.tools.accuracy.checks import check_accuracy, check_accuracy_logits_v2
from nxdi.tools.accuracy.reference import Prompts, greedy

MODES = ("token", "logit", "layers")
# What the comparison of modules needs, whatever the model is otherwise run with.
LAYER_OPTIONS: Mapping[str, Any] = {
    "backend": "eager",
    "torch_dtype": "float32",
    "sequence_parallel_enabled": False,
    "on_device_sampling_config": None,
}


@dataclass(frozen=True)
class Outcome:
    """What one mode found: a line for people, and the numbers behind it."""

    passed: bool
    line: str
    details: Any


@dataclass
class Check:
    """The modes that have run, in order."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(outcome.passed for outcome in self.outcomes.values())

    @property
    def summary(self) -> str:
        """One line: the innermost finding, or that all agrees."""
        if self.passed:
            lines = "; ".join(outcome.line for outcome in self.outcomes.values())
            return f"agrees with transformers: {lines}"
        failed = [name for name, outcome in self.outcomes.items() if not outcome.passed]
        line = f"diverges from transformers: {self.outcomes[failed[-1]].line}"
        return line + self._hint(failed)

    def _hint(self, failed: list[str]) -> str:
        if "layers" in self.outcomes and "layers" not in failed:
            return (
                "; every module agrees in float32 on the eager backend, so look at the dtype, the "
                "backend and its compiled graphs"
            )
        if failed == ["layers"] and "logit" in self.outcomes:
            return (
                "; the logits agree, so the error is small, or the module divides the work "
                "otherwise than the reference's: then ignore it"
            )
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data; numbers that JSON has not are their names."""
        modes = {name: asdict(outcome) for name, outcome in self.outcomes.items()}
        plain: dict[str, Any] = _plain(
            {"passed": self.passed, "summary": self.summary, "modes": modes}
        )
        return plain


def check_tokens_and_logits(
    model: NeuronBaseForCausalLM,
    reference: nn.Module,
    prompts: Prompts,
    num_tokens: int,
    modes: tuple[str, ...],
    scale: float,
) -> dict[str, Outcome]:
    """The modes "token" and "logit", on whatever backend the model is loaded; scale: of tolerances.

    Raises: what the functions of `checks` raise, other than for a difference.
    """
    ids, mask = prompts.batch()
    tol_map = {k: (atol * scale, rtol * scale) for k, (atol, rtol) in logits.TOL_MAP.items()}
    tie_tol = logits.DIVERGENCE_DIFFERENCE_TOL * scale

    def match_tokens() -> logits.Results:
        inputs = {"input_ids": ids, "attention_mask": mask}
        return check_accuracy(
            model, num_tokens_to_check=num_tokens, inputs=inputs, reference=reference
        )

    def match_logits() -> logits.Results:
        expected = greedy(reference, prompts, num_tokens)[1]
        return check_accuracy_logits_v2(model, expected, ids, mask, None, tie_tol, tol_map)

    checks = {"token": match_tokens, "logit": match_logits}
    return {name: _outcome(name, checks[name]) for name in modes if name in checks}


def check_layers(
    model: NeuronBaseForCausalLM,
    reference: nn.Module,
    prompts: Prompts,
    num_tokens: int,
    scale: float,
    ignore: Sequence[str] = (),
) -> Outcome:
    """The mode "layers"; the model as `LAYER_OPTIONS` load it."""
    tolerance = layers.TOLERANCE * scale
    found = layers.find_divergence(model, prompts, num_tokens, reference, tolerance, ignore)
    if found.divergence is None:
        line = f"{len(found.modules)} modules within {tolerance:.1g}"
        return Outcome(True, line, {"modules": found.modules})
    return Outcome(False, str(found.divergence), asdict(found.divergence))


def random_prompts(num_rows: int, length: int, vocab_size: int) -> Prompts:
    """The same random tokens every time; each row a token shorter than the one before."""
    generator = torch.Generator().manual_seed(0)
    return Prompts(
        tuple(
            torch.randint(vocab_size, (max(1, length - row),), generator=generator)
            for row in range(num_rows)
        )
    )


def _outcome(name: str, check: Callable[[], logits.Results]) -> Outcome:
    try:
        results = check()
    except logits.LogitMatchingValidationError as error:
        return Outcome(False, f"{name}s: {error.message}", error.results)
    compared = [result for row in results for result in row]
    num_ties = sum(result["is_tie"] for result in compared)
    return Outcome(True, f"{len(compared)} {name}s ({num_ties} ties)", results)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value
