"""Speculation holds no more than the model and its draft, and steps leave caches in their places.

Bytes are those of the tensors that loaded models compute with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from held_memory import memory, tensors_held
from nxdi.generation import ContinuousBatcher
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from speculation_modes import MODES, Folders, Made, options_of, some_requests
from tiny_models import COMPILED, load_app
from tree_proposers import run

LENGTHS: dict[str, Any] = {"batch_size": 3, "seq_len": 128, "max_context_length": 32}
SLACK = 1.05
FEW = 256  # bytes of constants that a compiled graph may have of its own


def held(*models: NeuronBaseForCausalLM) -> int:
    ranks = [rank for model in models for rank in model.runner.executables]
    return sum(memory(tensors_held(rank)) for rank in ranks)


def weights_in(folder: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())


def head_bytes(folder: Path, target: NeuronBaseForCausalLM) -> int:
    """Weights, with the target's ends that the head's folder lacks, and the cache of one layer."""
    config, rows = target.config, LENGTHS["batch_size"] * LENGTHS["seq_len"]
    num_ends = 1 if "lm_head.weight" in load_file(folder / "model.safetensors") else 2
    ends = num_ends * config.vocab_size * config.hidden_size
    per_token = 2 * config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    return weights_in(folder) + 4 * (ends + rows * per_token)


def draft_bytes(mode: str, folders: Folders, plain: NeuronBaseForCausalLM, **options: Any) -> int:
    """What the draft of a mode has by itself, weights and cache."""
    if mode in ("draft", "fused"):
        return held(load_app(folders.draft, **options))
    if mode.startswith("eagle"):
        return head_bytes(folders.eagle3 if "3" in mode else folders.eagle, plain)
    if mode.startswith("medusa"):
        heads = torch.load(folders.target / "medusa_heads.pt", weights_only=True)
        return sum(tensor.nbytes for tensor in heads.values())
    return 0


def check_memory(made: Made, mode: str, folders: Folders, **options: Any) -> None:
    plain = load_app(folders.target, **options)
    extra = held(*made.models) - held(plain)
    most = SLACK * draft_bytes(mode, folders, plain, **options)
    assert 0 <= extra <= most + FEW
    assert (extra > FEW) is (mode != "lookup")


def caches_of(made: Made) -> list[Tensor]:
    ranks = [rank for model in made.models for rank in model.runner.executables]
    return [cache for rank in ranks for cache in rank.caches]


def check_steps(made: Made, num_requests: int) -> None:
    batcher = ContinuousBatcher(made.target, proposer=made.proposer)
    run(batcher, some_requests(4, num_requests))
    assert batcher.speculation is not None
    assert batcher.speculation.counts.proposed
    assert all(bool(cache.any()) for cache in caches_of(made))


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_that_of_both(mode: str, mode_folders: Folders) -> None:
    """After some steps as before."""
    options = options_of(mode, **LENGTHS)
    made = MODES[mode].load(mode_folders, list(MODES[mode].variants)[-1], **options)
    check_steps(made, 2)
    check_memory(made, mode, mode_folders, **options)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("mode", MODES)
def test_compiled_graphs(mode: str, mode_folders: Folders) -> None:
    """They change caches where these are; and their tokens are those of the eager graphs."""
    options = options_of(mode, **COMPILED)
    made = MODES[mode].load(mode_folders, MODES[mode].usual, **options)
    places = [cache.data_ptr() for cache in caches_of(made)]
    check_steps(made, 6)
    assert [cache.data_ptr() for cache in caches_of(made)] == places
    check_memory(made, mode, mode_folders, **options)
    asked = some_requests(5, 9)
    expected = run(ContinuousBatcher(load_app(mode_folders.target, **LENGTHS)), asked)
    assert run(ContinuousBatcher(made.target, proposer=made.proposer), asked) == expected
