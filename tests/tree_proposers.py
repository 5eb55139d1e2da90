"""What tests of speculation share: requests, and trees with the answers hidden in them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.generation.speculation.proposals import Proposal, Rule, Seen, Wanted
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from tiny_models import VOCAB_SIZE

# Where the right tokens are: anywhere, in the first chain, in another one, nowhere.
KINDS = ("anywhere", "first", "off", "wrong")


class Knowing:
    """Proposes a tree for each sequence, drawn anew each time.

    answers: whole sequences, prompts and what plain decoding makes of them.
    """

    draft = None

    def __init__(self, answers: Sequence[Sequence[int]], kind: str, vocab_size: int) -> None:
        self.answers, self.kind, self.vocab_size = (
            [list(answer) for answer in answers],
            kind,
            vocab_size,
        )
        self.draw = random.Random(kind)

    def check(self, target: NeuronBaseForCausalLM) -> None:
        pass

    def watch(self, seen: Sequence[Seen]) -> None:
        pass

    def propose(self, rows: Sequence[Wanted], rule: Rule) -> list[Proposal]:
        return [self._tree(row) for row in rows]

    def _tree(self, row: Wanted) -> Proposal:
        right = self._right(row.sequence.tokens)
        most = self.draw.randint(0, row.num_nodes) if self.kind == "anywhere" else row.num_nodes
        # More than is wanted: the step cuts what does not fit.
        most += self.draw.randint(0, 2)
        parents, tokens, is_right = [-1], [-1], {0: 0}  # nodes on the right path -> their depth
        while len(parents) <= most:
            parent, token = self._next(parents, is_right, right)
            taken = {tokens[n] for n in range(len(tokens)) if parents[n] == parent}
            depth = is_right.get(parent)
            truth = right[depth] if depth is not None and depth < len(right) else None
            if token is None:
                token = self.draw.choice(
                    [t for t in range(self.vocab_size) if t not in taken | {truth}]
                )
            elif token in taken:
                continue
            parents.append(parent)
            tokens.append(token)
            if depth is not None and token == truth:
                is_right[len(parents) - 1] = depth + 1
        return Proposal(tokens[1:], None, tuple(parents))

    def _next(
        self, parents: list[int], is_right: dict[int, int], right: list[int]
    ) -> tuple[int, int | None]:
        """Below which node the next token is, and which; None: a wrong one."""
        last = max(is_right)
        deeper = right[is_right[last]] if is_right[last] < len(right) else None
        if self.kind == "first":
            return last, deeper
        if self.kind == "off":
            return (0, None) if len(parents) == 1 else (last, deeper)
        if self.kind == "wrong" or self.draw.random() < 0.5:
            return self.draw.randrange(len(parents)), None
        return last, deeper

    def _right(self, tokens: Sequence[int]) -> list[int]:
        """What follows in the answer that begins like this."""
        size = len(tokens)
        return next(answer[size:] for answer in self.answers if answer[:size] == list(tokens))


class InLine(Knowing):
    """Proposes tokens that follow each other: all right, all wrong, or none."""

    KINDS = ("right", "wrong", "none")

    def _tree(self, row: Wanted) -> Proposal:
        right = self._right(row.sequence.tokens)[: row.most]
        if self.kind == "none":
            return Proposal()
        off = 0 if self.kind == "right" else 1
        return Proposal([(token + off) % self.vocab_size for token in right])


def requests(seed: int, number: int) -> list[tuple[list[int], RequestOptions]]:
    """Prompts that begin alike, half of them sampled; some go on up to the end of the cache."""
    draw = random.Random(seed)
    start = [draw.randrange(1, VOCAB_SIZE) for _ in range(9)]
    made = []
    for index in range(number):
        prompt = start[: draw.randrange(10)] + [draw.randrange(1, VOCAB_SIZE) for _ in range(3)]
        sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.7} if index % 2 else {}
        new = draw.choice([1, 2, 11, None])
        options = RequestOptions(max_new_tokens=new, ignore_eos=True, seed=index, **sampling)
        made.append((prompt, options))
    return made


def mixed_requests(number: int) -> list[tuple[list[int], RequestOptions]]:
    """Half of them sampled, some with the same start, some up to the end of their room."""
    made = []
    for index in range(number):
        sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.7} if index % 2 else {}
        options = RequestOptions(
            max_new_tokens=[11, None, 2][index % 3], ignore_eos=True, seed=index, **sampling
        )
        made.append(([5, 6, 7, 8, 9, 10, index + 11, 4], options))
    return made


def run(
    batcher: ContinuousBatcher, asked: Sequence[tuple[list[int], RequestOptions]]
) -> list[list[int]]:
    """The tokens of each request; some come while others run."""
    waiting, ids, found = list(asked), [], dict[int, list[int]]()
    while waiting or batcher.num_requests:
        if waiting:
            ids.append(batcher.add(*waiting.pop(0)))
        for output in batcher.step():
            found.setdefault(output.request_id, []).append(output.token)
    return [found[request] for request in ids]
