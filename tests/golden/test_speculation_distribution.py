"""Sampled speculation keeps the target's distribution, from prompts to tokens, in every mode.

One prompt is continued 20,000 times (by default fewer); how often each two tokens follow each other
there is compared with what transformers' model gives them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

import nxdi.generation.speculation.rules as host_rules
import nxdi.modules.speculation.acceptance as acceptance
import nxdi.modules.speculation.fused as graph_rules
from chi_square import LEAST_P, p_value
from nxdi.modules.speculation.acceptance import Accepted, accept_by_rejection, accept_matching
from nxdi.modules.speculation.tree import Path as KeptPath
from nxdi.modules.speculation.tree import follow
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from speculation_modes import MODES, SAMPLES, Folders, save_folders

VOCAB = 8
PROMPT = [3, 1, 5, 2, 6, 7, 4, 3]  # every token but padding, for prompt lookup
DRAWS, FEWER, BROKEN_DRAWS = 20_000, 8_000, 6_000
ROWS = 2000
LENGTHS: dict[str, Any] = {"seq_len": 16, "max_context_length": 8, "batch_size": ROWS}
# Chosen by transformers on the host, draws of a draft by rejection; or by seeds in the graph.
RULES: dict[str, dict[str, Any]] = {"host": {}, "seeds": SAMPLES}
QUICK = (("draft", "host"), ("medusa trees", "seeds"))
ALL = [(mode, rule) for mode in MODES for rule in RULES if (mode, rule) != ("fused", "host")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Draws from the draft are rejected often enough, and no two tokens are too seldom to count."""
    root = tmp_path_factory.mktemp("few-tokens")
    return save_folders(root, seed=7, noise=0.3, temperature=2, vocab_size=VOCAB)


@pytest.fixture(scope="module")
def exact(folders: Folders) -> Tensor:
    """What the target gives the first four tokens after the prompt [VOCAB, VOCAB, VOCAB, VOCAB]."""
    return joint(LlamaForCausalLM.from_pretrained(folders.target), 4)


@torch.no_grad()
def joint(model: PreTrainedModel, num_new: int) -> Tensor:
    found = torch.ones(())
    for ahead in range(num_new):
        paths = torch.tensor([*itertools.product(range(VOCAB), repeat=ahead)]).long()
        ids = torch.cat([torch.tensor([PROMPT]).expand(len(paths), -1), paths], dim=1)
        after = model(ids).logits[:, -1].double().softmax(dim=-1)
        found = found.unsqueeze(-1) * after.view([VOCAB] * (ahead + 1))
    return found


def continuations(folders: Folders, mode: str, rule: str, num_draws: int, num_new: int) -> Tensor:
    """Token ids [num_draws, num_new]."""
    made = MODES[mode].load(folders, MODES[mode].usual, **LENGTHS, **RULES[rule])
    adapter: Any = HuggingFaceGenerationAdapter(made.target)
    ids = torch.tensor([PROMPT]).expand(ROWS, -1)
    asked = {"attention_mask": torch.ones_like(ids), "do_sample": True, "top_k": 0}
    torch.manual_seed(0)
    found = [
        adapter.generate(ids, **asked, max_new_tokens=num_new, proposer=made.proposer)
        for _ in range(num_draws // ROWS)
    ]
    return torch.cat(found)[:, len(PROMPT) :]


def fits(tokens: Tensor, exact: Tensor) -> list[float]:
    """The p value of each two tokens that follow each other."""
    found = []
    for place, (first, second) in enumerate(itertools.pairwise(tokens.T)):
        others = [axis for axis in range(exact.dim()) if axis not in (place, place + 1)]
        counts = torch.bincount(first * VOCAB + second, minlength=VOCAB**2)
        found.append(p_value(counts, exact.sum(dim=others).flatten()))
    return found


@pytest.mark.parametrize(
    ("mode", "rule", "num_draws", "num_new"),
    [
        *((*quick, FEWER, 3) for quick in QUICK),
        *(pytest.param(*each, DRAWS, 4, marks=pytest.mark.slow) for each in ALL),
    ],
)
def test_tokens_have_the_distribution_of_the_target(
    mode: str, rule: str, num_draws: int, num_new: int, folders: Folders, exact: Tensor
) -> None:
    assert min(fits(continuations(folders, mode, rule, num_draws, num_new), exact)) > LEAST_P


def keep_all(proposed: Tensor, p: Tensor, q: Tensor, keep: Tensor, draw: Tensor) -> Accepted:
    return accept_by_rejection(proposed, p, q, 0 * keep, draw)


def keep_all_chosen(proposed: Tensor, chosen: Tensor) -> Accepted:
    return accept_matching(proposed, torch.cat([proposed, chosen[:, -1:]], dim=1))


def keep_first_children(
    tokens: Sequence[int], parents: Sequence[int], choose: Callable[[list[int]], int]
) -> KeptPath:
    """The target is not asked where there is a child."""
    first = {parent: token for token, parent in zip(tokens[::-1], parents[:0:-1], strict=True)}

    def keep(path: list[int]) -> int:
        return first[path[-1]] if path[-1] in first else choose(path)

    return follow(tokens, parents, keep)


BROKEN: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "all draws are kept": (host_rules, "accept_by_rejection", keep_all),
    "no draw makes up for a rejection": (acceptance, "residual", lambda p, q: p),
    "first children are kept": (host_rules, "follow", keep_first_children),
    "all in the graph are kept": (graph_rules, "accept_matching", keep_all_chosen),
}


@pytest.mark.parametrize(
    ("mode", "rule", "broken"),
    [
        ("draft", "host", "all draws are kept"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("draft", "host", "no draw makes up for a rejection"),
                ("draft", "seeds", "first children are kept"),
                ("medusa trees", "seeds", "first children are kept"),
                ("fused", "seeds", "all in the graph are kept"),
                ("lookup", "host", "first children are kept"),
                ("eagle", "host", "all draws are kept"),
                ("eagle3", "host", "no draw makes up for a rejection"),
                ("eagle trees", "host", "first children are kept"),
                ("eagle3 growing trees", "host", "first children are kept"),
                ("medusa", "seeds", "first children are kept"),
            )
        ),
    ],
)
def test_a_wrong_rule_is_noticed(
    mode: str,
    rule: str,
    broken: str,
    folders: Folders,
    exact: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, name, function = BROKEN[broken]
    monkeypatch.setattr(place, name, function)
    assert min(fits(continuations(folders, mode, rule, BROKEN_DRAWS, 3), exact)) < LEAST_P
