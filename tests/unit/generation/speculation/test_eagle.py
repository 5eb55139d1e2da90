"""EAGLE heads: what they propose is what a plain head computes anew, and tokens stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nxdi.config import NeuronConfig
from nxdi.errors import ConfigError, WeightError
from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.generation.speculation import EagleHead
from nxdi.generation.speculation.proposals import Proposal, Rule, Wanted
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter as Adapter
from tiny_eagle import KINDS, PlainHead, load_head
from tiny_models import VOCAB_SIZE, load_app, save_tiny, tiny_hf_model

LENGTHS: dict[str, Any] = {
    "seq_len": 64,
    "max_context_length": 24,
    "batch_size": 3,
    "speculation_length": 4,
}
UNKNOWN = -1


TARGETS_ONLY = (
    "is_block_kv_layout",
    "is_prefix_caching",
    "pa_block_size",
    "async_mode",
    "on_device_sampling_config",
)


class Recording(EagleHead):
    """Remembers what it proposed to which tokens, and from where on it knew them."""

    def __init__(self, head: Any) -> None:
        super().__init__(head)
        self.record: list[tuple[list[int], int, int, list[int]]] = []

    def propose(self, rows: Sequence[Wanted], rule: Rule) -> list[Proposal]:
        found = super().propose(rows, rule)
        for row, proposal in zip(rows, found, strict=True):
            known = self._rows.find(row.sequence.id)
            first = UNKNOWN if known is None else known.first
            tokens = list(row.sequence.tokens)
            self.record.append((tokens, row.most, first, proposal.tokens))
        return found


@pytest.fixture(scope="module", params=list(KINDS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(plain head, target's folder, head's folder, options of both)."""
    options = KINDS[request.param]
    model = tiny_hf_model("llama", seed=3, num_hidden_layers=5)
    plain = PlainHead(model, **options)
    folder = save_tiny(model, tmp_path_factory.mktemp("target"))
    return plain, folder, plain.save(tmp_path_factory.mktemp("head")), options


def load_both(made: Any, **more: Any) -> tuple[Any, Any]:
    _, folder, head_folder, options = made
    given = {**LENGTHS, **options, **more}
    target = load_app(folder, enable_eagle_speculation=True, **given)
    own = {name: value for name, value in given.items() if name not in TARGETS_ONLY}
    return target, load_head(head_folder, folder, **own)


def check(record: Sequence[tuple[list[int], int, int, list[int]]], plain: PlainHead) -> None:
    assert sum(bool(proposed) for *_, proposed in record) > len(record) / 2
    for tokens, most, first, proposed in record:
        if first == UNKNOWN:  # all but its last token was found in the cache
            assert proposed == []
            continue
        assert len(proposed) == most
        assert proposed == plain.propose(tokens, most, first)


@pytest.mark.parametrize("tp_degree", [1, 2])
def test_it_proposes_what_a_plain_head_computes(made: Any, tp_degree: int) -> None:
    target, head = load_both(made, tp_degree=tp_degree)
    ids = torch.randint(1, VOCAB_SIZE, (3, 9), generator=torch.Generator().manual_seed(3))
    plain_tokens = Adapter(target).generate(ids, max_new_tokens=12, do_sample=False)
    proposer = Recording(head)
    batcher = ContinuousBatcher(target, proposer=proposer)
    for row in ids.tolist():
        batcher.add(row, RequestOptions(max_new_tokens=12))
    batcher.run()
    check(proposer.record, made[0])
    same = Adapter(target).generate(ids, max_new_tokens=12, do_sample=False, assistant_model=head)
    assert torch.equal(same, plain_tokens)


CACHES: dict[str, dict[str, Any]] = {
    "blocks": {"is_block_kv_layout": True, "pa_block_size": 8},
    "prefixes": {"is_block_kv_layout": True, "pa_block_size": 8, "is_prefix_caching": True},
    "pieces": {"windowed_context_encoding_size": 8},
    "ahead": {"async_mode": True, "on_device_sampling_config": {"dynamic": True}},
}


def run(batcher: ContinuousBatcher, prompts: Sequence[list[int]]) -> list[list[int]]:
    """The tokens of each request; they arrive while others run."""
    waiting, ids, found = list(prompts), [], {}
    while waiting or batcher.num_requests:
        if waiting:
            ids.append(batcher.add(waiting.pop(0), RequestOptions(max_new_tokens=11)))
        for output in batcher.step():
            found.setdefault(output.request_id, []).append(output.token)
    return [found[request] for request in ids]


@pytest.mark.parametrize("cache", CACHES)
def test_requests_come_and_go(made: Any, cache: str) -> None:
    if (made[3] == KINDS["eagle"]) is not (cache in ("blocks", "ahead")):
        return  # each cache with one kind
    target, head = load_both(made, **CACHES[cache])
    generator = torch.Generator().manual_seed(4)
    shared = torch.randint(1, VOCAB_SIZE, (16,), generator=generator).tolist()
    prompts = [[*shared, 5, 6], [7, 8, 9], [*shared, 11], [12] * 20, [*shared, 13, 14]]
    proposer = Recording(head)
    plain = run(ContinuousBatcher(target), prompts)
    target.reset()
    assert run(ContinuousBatcher(target, proposer=proposer), prompts) == plain
    check(proposer.record, made[0])


def test_a_head_that_says_what_its_target_says_is_always_right(tmp_path: Path) -> None:
    """Neither adds anything to its embeddings, so the next token follows from the last one."""
    model = tiny_hf_model("llama", seed=3)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        plain = PlainHead(model)
        for projection in (plain.layers[0].self_attn.o_proj, plain.layers[0].mlp.down_proj):
            projection.weight.zero_()
        plain.fc.weight.copy_(torch.eye(64, 128))
        plain.fc.bias.zero_()
    for name in ("target", "head"):
        (tmp_path / name).mkdir()
    folder = save_tiny(model, tmp_path / "target")
    target = load_app(folder, enable_eagle_speculation=True, **LENGTHS)
    head = load_head(plain.save(tmp_path / "head", has_ends=True), **LENGTHS)
    batcher = ContinuousBatcher(target, proposer=EagleHead(head))
    run(batcher, [[5, 6, 7], [8] * 20, [9]])
    assert batcher.speculation is not None
    counts = batcher.speculation.counts
    assert counts.acceptance == 1
    assert counts.tokens_per_step > 3


def test_what_does_not_fit_is_refused(made: Any, tmp_path: Path) -> None:
    _, folder, head_folder, options = made
    given = {**LENGTHS, **options}
    target = load_app(folder, enable_eagle_speculation=True, **given)
    plain_target = load_app(folder, **LENGTHS)
    head = load_head(head_folder, folder, **given)
    with pytest.raises(ConfigError, match="does not return what the head reads"):
        ContinuousBatcher(plain_target, proposer=EagleHead(head))
    short = load_head(head_folder, folder, **{**given, "speculation_length": 0})
    with pytest.raises(ConfigError, match="several verified tokens"):
        ContinuousBatcher(target, proposer=EagleHead(short))
    sampling = load_head(head_folder, folder, **given, on_device_sampling_config={"dynamic": True})
    with pytest.raises(ConfigError, match="samples in its graphs"):
        ContinuousBatcher(target, proposer=EagleHead(sampling))
    with pytest.raises(ConfigError, match="sequence_parallel_enabled"):
        load_head(head_folder, folder, **given, tp_degree=2, sequence_parallel_enabled=True)
    with pytest.raises(WeightError, match=r"embed_tokens.*target_model_path"):
        load_head(head_folder, **given)
    other = tiny_hf_model("llama", seed=3, hidden_size=32, num_hidden_layers=5)
    (tmp_path / "narrow").mkdir()
    narrow = load_app(save_tiny(other, tmp_path / "narrow"), enable_eagle_speculation=True, **given)
    with pytest.raises(ConfigError, match="features of a token"):
        ContinuousBatcher(narrow, proposer=EagleHead(head))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"is_eagle3": True}, "is_eagle_draft=True; set one of them"),
        ({"enable_eagle_draft_input_norm": True}, "heads of EAGLE v1"),
    ],
)
def test_options_without_their_like_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        NeuronConfig(**options)


TREES: dict[str, Any] = {
    "wide": {"0": [1, 2, 3]},
    "deep": {"0": [1, 4], "1": [2, 3], "2": [5]},
    "dynamic": {"step": 3, "branching_factor": 2, "num_inputs": 2, "num_verification_token": 5},
}


@pytest.mark.parametrize("tree", TREES)
def test_trees(made: Any, tree: str) -> None:
    """Tokens stay, and the likeliest chain of each tree is what the head proposes in line."""
    target, head = load_both(made, speculation_length=8, token_tree_config=TREES[tree])
    prompts = [[5, 6, 7, 8, 9], [7, 8], [12] * 15]
    plain = run(ContinuousBatcher(target), prompts)
    target.reset()
    proposer = Recording(head)
    batcher = ContinuousBatcher(target, proposer=proposer)
    assert run(batcher, prompts) == plain
    deepest = {"wide": 1, "deep": 3, "dynamic": 1}[tree]  # of a dynamic one the first is certain
    checked = 0
    for tokens, most, first, proposed in proposer.record:
        if first != UNKNOWN and most >= deepest:
            assert proposed[:deepest] == made[0].propose(tokens, deepest, first)
            checked += 1
    assert checked > 3


def test_a_head_for_trees_verifies_trees(made: Any) -> None:
    _, folder, head_folder, options = made
    given = {**LENGTHS, **options, "speculation_length": 8}
    target = load_app(
        folder, enable_eagle_speculation=True, **given, token_tree_config=TREES["wide"]
    )
    with pytest.raises(ConfigError, match="compile it with the target's token_tree_config"):
        ContinuousBatcher(target, proposer=EagleHead(load_head(head_folder, folder, **given)))
