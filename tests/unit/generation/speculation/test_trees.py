"""Trees of proposed tokens: the right ones anywhere in them, and the tokens are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nxdi.errors import ConfigError, ShapeError
from nxdi.generation import ContinuousBatcher
from nxdi.generation.speculation.proposals import Proposal
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from tiny_models import VOCAB_SIZE, load_app, save_tiny, tiny_hf_model
from tree_proposers import KINDS, InLine, Knowing, requests, run

# Which tree is proposed is up to who proposes; the option only says that there are trees.
TREES: dict[str, Any] = {"speculation_length": 7, "token_tree_config": {"0": [1, 2]}}
BLOCKS = {"is_block_kv_layout": True, "pa_block_size": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "window": ("mistral", {}),
    "two ranks": ("mistral", {"tp_degree": 2}),
    "chunks": ("llama4", {}),
    "float8": ("llama", {"kv_cache_quant": True}),
    "prefixes": ("mistral", {**BLOCKS, "is_prefix_caching": True}),
    "learned positions": ("gpt2", {"batch_size": 1}),
    # For one sequence and a half: requests lose their blocks and start over.
    "few blocks, ahead": (
        "llama",
        {
            **BLOCKS,
            "on_device_sampling_config": {"dynamic": True},
            "pa_num_blocks": 18,
            "async_mode": True,
            "chunked_prefill_config": {},
        },
    ),
}
LENGTHS: dict[str, Any] = {"seq_len": 48, "max_context_length": 16, "batch_size": 3}


@pytest.fixture(scope="module")
def of_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        family: save_tiny(tiny_hf_model(family, seed=3), tmp_path_factory.mktemp(family))
        for family in {family for family, _ in MODELS.values()}
    }


QUICK = ("window", "prefixes", "few blocks, ahead")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS],
)
def test_tokens_are_those_of_plain_decoding(name: str, of_family: dict[str, Path]) -> None:
    """Greedy and sampled requests, some up to the end of the cache, some come while others run."""
    family, options = MODELS[name]
    model = load_app(of_family[family], **{**LENGTHS, **TREES, **options})
    asked = requests(1, 7)
    plain = run(ContinuousBatcher(model), asked)
    answers = [[*prompt, *tokens] for (prompt, _), tokens in zip(asked, plain, strict=True)]
    per_step = {}
    for kind in KINDS:
        batcher = ContinuousBatcher(model, proposer=Knowing(answers, kind, VOCAB_SIZE))
        assert run(batcher, asked) == plain
        assert batcher.speculation is not None
        per_step[kind] = batcher.speculation.counts.tokens_per_step
    assert per_step["first"] > 5 > per_step["off"] > per_step["anywhere"] > 1.5
    assert per_step["wrong"] == 1


@pytest.mark.parametrize("own", [{}, TREES], ids=["chains", "trees"])
def test_steps_that_keep_all_or_nothing(own: dict[str, Any], folders: Any) -> None:
    """Of a graph for chains as of one for trees; and steps in which nothing is proposed."""
    model = folders.app(**own)
    asked = requests(1, 7)
    plain = run(ContinuousBatcher(model), asked)
    answers = [[*prompt, *tokens] for (prompt, _), tokens in zip(asked, plain, strict=True)]
    found = {}
    for kind in InLine.KINDS:
        batcher = ContinuousBatcher(model, proposer=InLine(answers, kind, VOCAB_SIZE))
        assert run(batcher, asked) == plain
        assert batcher.speculation is not None
        found[kind] = batcher.speculation.counts
    assert found["right"].acceptance == 1
    assert found["right"].tokens_per_step > 3
    assert found["wrong"].proposed[0] > 50
    assert found["wrong"].kept.total() == 0
    assert found["none"].proposed.total() == 0
    assert found["wrong"].num_steps == found["none"].num_steps == found["none"].num_tokens


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_generate_gives_the_same(kind: str, samples: bool, folders: Any) -> None:
    own = {"on_device_sampling_config": {"dynamic": True}} if samples else {}
    adapter = folders.adapter(**TREES, **own)
    ids = torch.randint(1, VOCAB_SIZE, (3, 9), generator=torch.Generator().manual_seed(3))
    options: dict[str, Any] = {"max_new_tokens": 40, "do_sample": samples, "top_k": 20}
    options |= {"seeds": [1, 2, 3]} if samples else {}
    plain = adapter.generate(ids, **options)
    proposer = Knowing(plain.tolist(), kind, VOCAB_SIZE)
    assert torch.equal(adapter.generate(ids, **options, proposer=proposer), plain)


def test_processors_see_the_path_to_each_node(folders: Any) -> None:
    adapter = folders.adapter(**TREES)
    ids = torch.arange(5, 13).view(1, -1)
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False, "repetition_penalty": 1.4}
    plain = adapter.generate(ids, **options)
    assert not torch.equal(plain, adapter.generate(ids, **{**options, "repetition_penalty": 1.0}))
    proposer = Knowing(plain.tolist(), "off", VOCAB_SIZE)
    assert torch.equal(adapter.generate(ids, **options, proposer=proposer), plain)


def test_longrope_switches_in_the_middle(tmp_path: Path) -> None:
    """No tree passes the switch, and what lies astray is prefilled with all else."""
    factors = {"short_factor": [1.0, 1.1] * 4, "long_factor": [1.5, 3.0] * 4}
    scaling = {"rope_scaling": {"type": "longrope", **factors}}
    hf = tiny_hf_model("phi3", original_max_position_embeddings=24, **scaling)
    folder = save_tiny(hf, tmp_path / "phi3")
    model = load_app(folder, **{**LENGTHS, "max_context_length": 48, **TREES})
    assert model.prefill_again_at == 24
    asked = requests(2, 4)
    plain = run(ContinuousBatcher(model), asked)
    answers = [[*prompt, *tokens] for (prompt, _), tokens in zip(asked, plain, strict=True)]
    assert max(map(len, answers)) > 30
    for kind in ("off", "anywhere"):
        batcher = ContinuousBatcher(model, proposer=Knowing(answers, kind, VOCAB_SIZE))
        assert run(batcher, asked) == plain


@pytest.fixture(scope="module")
def model(folders: Any) -> NeuronBaseForCausalLM:
    made: NeuronBaseForCausalLM = folders.app(**TREES)
    return made


def test_a_model_for_chains_refuses_trees(target: Any, model: Any) -> None:
    ids, places = torch.tensor([[4, 5, 6]]), torch.tensor([[2, 3, 4]])
    for app in (target, model):
        app(torch.tensor([[1, 2]]))
    with pytest.raises(ConfigError, match="not trees of them"):
        target.verify(ids, places, parents=[(-1, 0, 0)])
    with pytest.raises(ShapeError, match="not those of a tree of 3 tokens"):
        model.verify(ids, places, parents=[(-1, 0)])
    chain = model.verify(ids, places).logits
    assert torch.allclose(model.verify(ids, places, parents=[(-1, 0, 1)]).logits, chain)
    assert torch.allclose(target.verify(ids, places, parents=[(-1, 0, 1)]).logits, chain, atol=1e-4)


def test_proposals_are_cut_to_what_is_wanted() -> None:
    tree = Proposal([5, 6, 7, 8, 9], None, (-1, 0, 1, 2, 0, 4))
    assert tree.depth == 3
    assert tree.within(5, 3) is tree
    assert tree.within(5, 2) == Proposal([5, 6, 8, 9], None, (-1, 0, 1, 0, 3))
    assert tree.within(3, 2) == Proposal([5, 6, 8], None, (-1, 0, 1, 0))
    assert tree.within(5, 0) == Proposal([], None, (-1,))
    drawn = Proposal([5, 6, 7], torch.ones(3, 4) / 4)
    assert drawn.parents == (-1, 0, 1, 2)
    cut = drawn.within(7, 2)
    assert (cut.tokens, cut.draft is not None and len(cut.draft)) == ([5, 6], 2)
