from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chi_square import LEAST_P, p_value
from nxdi.modules.sampling import draw_token
from nxdi.modules.speculation import acceptance, tree
from nxdi.modules.speculation.acceptance import (
    Accepted,
    accept_by_rejection,
    accept_matching,
    residual,
)

VOCAB = 4
DRAWS = 40_000


def ints(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def certain(tokens: Tensor, vocab_size: int) -> Tensor:
    """Distributions [B, K, V] that are all on one token."""
    return (tokens.unsqueeze(-1) == torch.arange(vocab_size, dtype=tokens.dtype)).float()


def test_matching_keeps_what_the_target_chose() -> None:
    proposed = ints([[5, 6, 7], [5, 6, 7], [5, 6, 7], [5, 9, 7], [5, -1, -1], [-1, -1, -1]])
    chosen = ints([[5, 6, 7, 8], [5, 6, 1, 2], [1, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8], [5] * 4])
    accepted = accept_matching(proposed, chosen)
    assert accepted.tokens.tolist() == [
        [5, 6, 7, 8],  # all, and one more
        [5, 6, 1, -1],
        [1, -1, -1, -1],  # none
        [5, 6, -1, -1],  # 7 was right by chance, after a wrong token
        [5, 6, -1, -1],  # all of the one that was proposed
        [5, -1, -1, -1],  # nothing was proposed
    ]
    assert accepted.num_tokens.tolist() == [4, 3, 1, 2, 2, 1]
    assert accepted.tokens.dtype == accepted.num_tokens.dtype == torch.int32


def test_steps_without_a_place_for_proposals() -> None:
    assert accept_matching(ints([[]]), ints([[3]])).tokens.tolist() == [[3]]
    target = certain(ints([[2]]), VOCAB)
    none = torch.zeros(1, 0)
    empty = accept_by_rejection(ints([[]]), target, target[:, :0], none, torch.zeros(1))
    assert empty.tokens.tolist() == [[2]]


def test_rejection_at_its_edges() -> None:
    """Distributions on one token each: what is kept does not depend on the numbers."""
    proposed = ints([[1, 2], [1, 2], [0, 2], [1, -1], [-1, -1]])
    target = certain(ints([[1, 2, 3]] * 5), VOCAB)
    target[1] = certain(ints([[1, 3, 0]]), VOCAB)
    draft = certain(proposed, VOCAB)
    for number in (0.0, 0.5, 1 - 2**-24):
        keep, draw = torch.full((5, 2), number), torch.full((5,), number)
        accepted = accept_by_rejection(proposed, target, draft, keep, draw)
        assert accepted.tokens.tolist() == [
            [1, 2, 3],
            [1, 3, -1],
            [1, -1, -1],
            [1, 2, -1],
            [1, -1, -1],
        ]


def test_equal_distributions_keep_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(500, 4, VOCAB, generator=generator).softmax(-1)
    proposed = torch.multinomial(target[:, :3].flatten(0, 1), 1, generator=generator)
    keep = torch.rand(500, 3, generator=generator)
    accepted = accept_by_rejection(
        proposed.view(500, 3).int(), target, target[:, :3], keep, keep[:, 0]
    )
    assert bool((accepted.num_tokens == 4).all())


def test_the_residual_of_equal_distributions_is_the_target() -> None:
    p = torch.tensor([[0.5, 0.5, 0, 0], [0.2, 0.8, 0, 0]])
    q = torch.tensor([[0.5, 0.5, 0, 0], [0.6, 0.4, 0, 0]])
    assert torch.equal(residual(p, q)[0], p[0])
    assert (residual(p, q)[1] > 0).tolist() == [False, True, False, False]


def chain(seed: int, zeros: bool = False) -> Tensor:
    """For each token the distribution of the next one [VOCAB, VOCAB]."""
    logits = 1.5 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))
    if zeros:  # as top_k leaves them
        logits[:, 1] = -torch.inf
    return logits.softmax(-1)


TARGET = chain(1)
# A draft that often errs, one that is always right, one that proposes what is impossible.
PAIRS = {
    "other": (TARGET, chain(2)),
    "same": (TARGET, TARGET),
    "impossible": (chain(1, zeros=True), chain(2)),
    "narrower": (TARGET, chain(2, zeros=True)),
}

Step = Callable[[Tensor, Tensor, torch.Generator], Accepted]


def drawn_proposals(target: Tensor, draft: Tensor, num_proposed: int) -> Step:
    """A draft model: proposals are drawn from its own chain, and kept or rejected."""

    def step(last: Tensor, uniform: Tensor, generator: torch.Generator) -> Accepted:
        tokens, q = [last], []
        for _ in range(num_proposed):
            q.append(draft[tokens[-1].long()])
            tokens.append(torch.multinomial(q[-1], 1, generator=generator).squeeze(1).int())
        seen = torch.stack(tokens, dim=1)
        keep = torch.rand(len(last), num_proposed, generator=generator)
        return acceptance.accept_by_rejection(
            seen[:, 1:], target[seen.long()], torch.stack(q, dim=1), keep, uniform
        )

    return step


def certain_proposals(target: Tensor, draft: Tensor, num_proposed: int) -> Step:
    """Prompt lookup: the proposals of a row are the same in every draw."""

    def step(last: Tensor, uniform: Tensor, generator: torch.Generator) -> Accepted:
        guess = ints([[2, 0, 3, 1][:num_proposed]]).expand(len(last), -1)
        seen = torch.cat([last.unsqueeze(1), guess], dim=1)
        keep = torch.rand(guess.shape, generator=generator)
        q = certain(guess, VOCAB)
        return acceptance.accept_by_rejection(guess, target[seen.long()], q, keep, uniform)

    return step


def sampled_choices(target: Tensor, draft: Tensor, num_proposed: int) -> Step:
    """The target samples after every token; the draft with the same numbers from its own."""

    def step(last: Tensor, uniform: Tensor, generator: torch.Generator) -> Accepted:
        numbers = torch.rand(num_proposed + 1, len(last), generator=generator)
        tokens = [last]
        for number in numbers[:-1]:
            tokens.append(draw_token(draft[tokens[-1].long()], number))
        chosen = [
            draw_token(target[token.long()], number)
            for token, number in zip(tokens, numbers, strict=True)
        ]
        return acceptance.accept_matching(
            torch.stack(tokens[1:], dim=1), torch.stack(chosen, dim=1)
        )

    return step


def trees(target: Tensor, draft: Tensor, num_proposed: int) -> Step:
    """Certain proposals in a tree; the target draws after each node, whatever came before."""
    parents, guess = (-1, 0, 1, 0, 3, 0), [0, 2, 1, 0, 3, 2]
    size = min(num_proposed + 2, len(parents))
    sees, above = tree.ancestors(parents)[:size, :size], ints([list(parents[:size])])

    def step(last: Tensor, uniform: Tensor, generator: torch.Generator) -> Accepted:
        nodes = ints([guess[:size]]).repeat(len(last), 1)
        nodes[:, 0] = last
        p = target[nodes.long()].flatten(0, 1)
        chosen = torch.multinomial(p, 1, generator=generator).view(nodes.shape).int()
        rows = (x.expand(len(last), *x.shape[1:]) for x in (above, sees.unsqueeze(0)))
        kept = tree.accept_path(nodes, *rows, chosen)
        return Accepted(kept.tokens, kept.num_tokens)

    return step


MODES = {
    "draft model": drawn_proposals,
    "prompt lookup": certain_proposals,
    "same numbers": sampled_choices,
    "trees": trees,
}
LENGTH = 3  # tokens of each sequence; their joint distribution is compared


def sequences(step: Step, seed: int = 0) -> Tensor:
    """DRAWS sequences after token 0, made in as many steps as each takes [DRAWS, LENGTH]."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(DRAWS, 1 + LENGTH + 8, dtype=torch.int32)
    done = torch.zeros(DRAWS, dtype=torch.long)
    while bool((rows := (done < LENGTH).nonzero().flatten()).numel()):
        last = found[rows, done[rows]]
        tokens, count = step(last, torch.rand(len(rows), generator=generator), generator)
        for place in range(tokens.shape[1]):
            real = rows[place < count]
            found[real, done[real] + 1 + place] = tokens[place < count, place]
        done[rows] += count
    return found[:, 1 : 1 + LENGTH]


def fit(step: Step, target: Tensor) -> float:
    """How well the sequences of `step` fit those of the target chain."""
    places = torch.tensor([VOCAB**2, VOCAB, 1], dtype=torch.int32)
    counts = torch.bincount((sequences(step) * places).sum(dim=1), minlength=VOCAB**LENGTH)
    first, second, third = target[0], target, target
    joint = first[:, None, None] * second[:, :, None] * third[None]
    return p_value(counts, joint.flatten())


@pytest.mark.parametrize("num_proposed", [1, 4])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("mode", MODES)
def test_tokens_have_the_distribution_of_the_target(
    mode: str, pair: str, num_proposed: int
) -> None:
    assert fit(MODES[mode](*PAIRS[pair], num_proposed), PAIRS[pair][0]) > LEAST_P


def keep_too_much(proposed: Tensor, p: Tensor, q: Tensor, keep: Tensor, draw: Tensor) -> Accepted:
    return accept_by_rejection(proposed, p, q, 0.8 * keep, draw)


def keep_all(proposed: Tensor, p: Tensor, q: Tensor, keep: Tensor, draw: Tensor) -> Accepted:
    return accept_by_rejection(proposed, p, q, 0 * keep, draw)


@pytest.mark.parametrize("mode", ["draft model", "prompt lookup"])
@pytest.mark.parametrize("broken", [keep_too_much, keep_all])
def test_a_wrong_rule_is_noticed(
    broken: Callable[..., Accepted], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = MODES[mode](*PAIRS["other"], 2)
    monkeypatch.setattr(acceptance, "accept_by_rejection", broken)
    assert fit(step, TARGET) < LEAST_P


@pytest.mark.parametrize("mode", ["draft model", "prompt lookup"])
def test_a_wrong_token_after_a_rejection_is_noticed(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "residual", lambda p, q: p)
    assert fit(MODES[mode](*PAIRS["other"], 2), TARGET) < LEAST_P


def test_choices_that_are_kept_though_they_differ_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one_more(proposed: Tensor, chosen: Tensor) -> Accepted:
        chosen = torch.cat([proposed[:, :1], chosen[:, 1:]], dim=1)
        return accept_matching(proposed, chosen)

    monkeypatch.setattr(acceptance, "accept_matching", one_more)
    assert fit(sampled_choices(*PAIRS["other"], 2), TARGET) < LEAST_P


def test_a_path_that_is_kept_though_it_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_child(*inputs: Tensor) -> tree.KeptPath:
        chosen = inputs[-1].clone()
        chosen[:, 0] = torch.where(chosen[:, 0] == 3, inputs[0][:, 1], chosen[:, 0])
        return tree_rule(*inputs[:-1], chosen)

    tree_rule = tree.accept_path
    monkeypatch.setattr(tree, "accept_path", first_child)
    assert fit(trees(*PAIRS["other"], 4), TARGET) < LEAST_P


def test_both_rules_trace() -> None:
    """No value decides what is computed, and nothing is wider than 32 bits but what indexes."""
    proposed = ints([[1, 2], [3, -1]])
    p = torch.full((2, 3, VOCAB), 1 / VOCAB)

    class Both(torch.nn.Module):
        def forward(
            self, proposed: Tensor, p: Tensor, q: Tensor, u: Tensor
        ) -> tuple[Accepted, ...]:
            by_rejection = accept_by_rejection(proposed, p, q, u, u[:, 0])
            return by_rejection, accept_matching(proposed, by_rejection.tokens)

    arguments = (proposed, p, p[:, :2], torch.full((2, 2), 0.5))
    exported = torch.export.export(Both(), arguments).module()
    for found, expected in zip(exported(*arguments), Both()(*arguments), strict=True):
        assert torch.equal(found[0], expected[0])
        assert found[0].dtype == torch.int32
