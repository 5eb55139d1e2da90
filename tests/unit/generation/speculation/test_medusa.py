"""Medusa heads propose, alone or in trees, and the tokens are those of plain decoding."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nxdi.errors import ArtifactError, ConfigError, WeightError
from nxdi.generation import ContinuousBatcher
from nxdi.generation.speculation import MedusaHeads
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.runtime.checkpoint import write_safetensors
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from tiny_medusa import TREES, fitted_heads, heads_options, save_heads
from tiny_models import VOCAB_SIZE, load_app, make_app, save_tiny, tiny_hf_model
from tree_proposers import requests, run

LENGTHS: dict[str, Any] = {"seq_len": 48, "max_context_length": 16, "batch_size": 3}
SAMPLES = {"on_device_sampling_config": {"dynamic": True}}


def prompts(num_rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, VOCAB_SIZE, (3, 9), generator=generator)[:num_rows]


@pytest.fixture(scope="module")
def hf() -> PreTrainedModel:
    return tiny_hf_model("llama", seed=3)


@pytest.fixture(scope="module")
def plain(hf: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> NeuronBaseForCausalLM:
    return load_app(save_tiny(hf, tmp_path_factory.mktemp("plain")), **LENGTHS)


def generate(app: NeuronBaseForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    adapter: Any = HuggingFaceGenerationAdapter(app)
    found: Tensor = adapter.generate(ids, **{"max_new_tokens": 39, "do_sample": False, **options})
    return found


@pytest.fixture(scope="module")
def folder(
    hf: PreTrainedModel, plain: NeuronBaseForCausalLM, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    made = save_tiny(hf, tmp_path_factory.mktemp("heads"))
    save_heads(made, fitted_heads(hf, generate(plain, prompts()).tolist()))
    return made


def some(names: Iterable[str], *few: str) -> list[Any]:
    """These few always, and the others among the slow tests."""
    return [pytest.param(name, marks=() if name in few else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("tree", some(TREES, "chain", "twigs"))
def test_a_model_with_heads_speculates_of_its_own_accord(
    tree: str, folder: Path, plain: NeuronBaseForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nxdi.generation.speculation import step

    app = load_app(folder, **LENGTHS, **heads_options(tree))
    counts: list[tuple[int, int]] = []
    add = step.Counts.add
    monkeypatch.setattr(
        step.Counts, "add", lambda self, *args: counts.append(args) or add(self, *args)
    )
    assert torch.equal(generate(app, prompts()), generate(plain, prompts()))
    kept = sum(kept for _, kept in counts) / len(counts)
    assert kept > {"chain": 0.7, "wide": 1, "deep": 1, "twigs": 1.2}[tree]
    # More prompts than rows, and outputs that only plain decoding has.
    many = prompts().repeat(2, 1)
    assert torch.equal(generate(app, many), generate(plain, many))
    with_scores: Any = generate(
        app, prompts(), max_new_tokens=5, output_scores=True, return_dict_in_generate=True
    )
    assert len(with_scores.scores) == 5


@pytest.mark.parametrize(
    ("tree", "options"),
    [
        ("twigs", {"is_block_kv_layout": True, "pa_block_size": 4, "is_prefix_caching": True}),
        ("deep", {**SAMPLES, "async_mode": True, "chunked_prefill_config": {}}),
        ("chain", {**SAMPLES, "max_context_length": 8, "chunked_prefill_config": {}}),
    ],
)
def test_requests_come_and_go(tree: str, options: dict[str, Any], folder: Path) -> None:
    asked = requests(1, 7)
    expected = run(ContinuousBatcher(load_app(folder, **{**LENGTHS, **options})), asked)
    app = load_app(folder, **{**LENGTHS, **heads_options(tree), **options})
    batcher = ContinuousBatcher(app)  # it has proposals of its own
    assert run(batcher, asked) == expected
    assert batcher.speculation is not None
    assert batcher.speculation.counts.proposed[0] > 20


def test_sampled_tokens_follow_from_their_seeds(folder: Path) -> None:
    options: dict[str, Any] = {"do_sample": True, "top_k": 20, "seeds": [1, 2, 3]}
    app = load_app(folder, **LENGTHS, **SAMPLES)
    with_heads = load_app(folder, **LENGTHS, **SAMPLES, **heads_options("twigs"))
    assert torch.equal(
        generate(with_heads, prompts(), **options), generate(app, prompts(), **options)
    )


def test_heads_under_other_names(folder: Path, tmp_path: Path, hf: PreTrainedModel) -> None:
    """NxDI's, those below a module, and safetensors."""
    state = torch.load(folder / "medusa_heads.pt", weights_only=True)
    app = make_app(folder, **heads_options("chain"))
    wanted = app.get_state_dict()
    for name, prefix in (
        ("medusa_heads.pt", "medusa_head_"),
        ("medusa_lm_head.pt", "medusa_head."),
        ("medusa_heads.safetensors", ""),
    ):
        other = save_tiny(hf, tmp_path / name)
        renamed = {prefix + key: value for key, value in state.items()}
        if name.endswith(".pt"):
            save_heads(other, renamed, name)
        else:
            write_safetensors(other / name, renamed)
        app = make_app(other, **heads_options("chain"))
        found = app.get_state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in found if "heads" in key)
        assert other / name in app.checkpoint_files()


def test_heads_in_a_folder_of_their_own(
    folder: Path, plain: NeuronBaseForCausalLM, tmp_path: Path, hf: PreTrainedModel
) -> None:
    """Two of its three, beside a model that knows nothing of them; graphs find them again."""
    model, heads = save_tiny(hf, tmp_path / "model"), tmp_path / "heads"
    heads.mkdir()
    (heads / "config.json").write_text('{"medusa_num_heads": 5, "medusa_num_layers": 1}')
    save_heads(heads, torch.load(folder / "medusa_heads.pt"), "medusa_lm_head.pt")
    options: dict[str, Any] = {
        "is_medusa": True,
        "num_medusa_heads": 2,
        "medusa_speculation_length": 3,
        "medusa_heads_path": str(heads),
    }
    app = load_app(model, **LENGTHS, **options)
    assert heads / "medusa_lm_head.pt" in app.checkpoint_files()
    assert torch.equal(generate(app, prompts()), generate(plain, prompts()))
    batcher = ContinuousBatcher(app)
    run(batcher, requests(1, 3))
    assert batcher.speculation is not None
    assert set(batcher.speculation.counts.proposed) == {0, 1}
    again = type(app)(model / "artifact")
    again.load(model / "artifact")
    assert torch.equal(generate(again, prompts()), generate(plain, prompts()))
    # Elsewhere they are the same heads; others are not.
    options["medusa_heads_path"] = str(shutil.copytree(heads, tmp_path / "moved"))
    make_app(model, **LENGTHS, **options).load(model / "artifact")
    state = torch.load(heads / "medusa_lm_head.pt")
    save_heads(tmp_path / "moved", {n: t + 1 for n, t in state.items()}, "medusa_lm_head.pt")
    with pytest.raises(ArtifactError, match="weights_fingerprint"):
        make_app(model, **LENGTHS, **options).load(model / "artifact")


def test_missing_and_unknown_weights_are_named(hf: PreTrainedModel, tmp_path: Path) -> None:
    made = save_tiny(hf, tmp_path / "model")
    app = make_app(made, **heads_options("chain"))
    with pytest.raises(WeightError, match=r"no weights of Medusa heads.*medusa_heads\.pt"):
        app.checked_weights()
    state = fitted_heads(hf, [list(range(40))])
    del state["1.0.linear.bias"]
    save_heads(made, state)
    with pytest.raises(WeightError, match=r"missing from.*candidate_heads\.1\.0\.linear\.bias"):
        app.checked_weights()
    save_heads(made, {**state, "extra": torch.ones(2)})
    with pytest.raises(WeightError, match="tensors that no Medusa head has: extra"):
        app.checked_weights()


def test_a_model_without_heads_is_refused(target: Any) -> None:
    with pytest.raises(ConfigError, match="compiled without; set is_medusa"):
        ContinuousBatcher(target, proposer=MedusaHeads())


def test_heads_that_have_seen_something_else_propose_nothing(folder: Path) -> None:
    """Another sequence of the same id: one that goes on elsewhere."""
    app = load_app(folder, **LENGTHS, **heads_options("chain"))
    heads = MedusaHeads()
    first, second = ContinuousBatcher(app, proposer=heads), ContinuousBatcher(app, proposer=heads)
    asked = requests(2, 3)
    expected = run(ContinuousBatcher(load_app(folder, **LENGTHS)), asked)
    assert run(first, asked) == expected
    assert run(second, asked) == expected
