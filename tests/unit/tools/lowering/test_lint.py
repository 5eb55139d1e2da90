"""Each rule sees what it is for, and leaves the form it recommends alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nxdi.tools.lowering.lint import RULES, find_divergences

X = torch.ones(2, 4, 6, 8)
ROWS = torch.tensor([1, 0], dtype=torch.int32)


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("state", torch.zeros(2, 4, 6, 8))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        return self.function(self, x, rows)


def rules_broken(function: Callable[..., Tensor]) -> set[str]:
    program = torch.export.export(Calls(function), (X, ROWS), strict=False)
    return {found.rule for found in find_divergences(program)}


def rule(start: str) -> str:
    (found,) = (name for name in RULES if name.startswith(start))
    return found


def written(self: Calls, source: Tensor) -> Tensor:
    self.state.copy_(source)
    return self.state * 2


def put(self: Calls, source: Tensor, *indices: Tensor | None) -> Tensor:
    self.state.index_put_(indices, source)
    return self.state * 2


def put_last(x: Tensor, rows: Tensor) -> Tensor:
    return torch.ops.aten.index_put(x, [None, None, None, rows.long()], x[..., :2])


def strided(self: Calls, x: Tensor) -> Tensor:
    self.state[..., ::2].copy_(x[..., :4].contiguous())
    return self.state * 2


Function = Callable[[Calls, Tensor, Tensor], Tensor]
CASES: list[tuple[str, list[Function], list[Function]]] = [
    (
        "a split by a list",
        [
            lambda self, x, rows: x.split([3, 5], dim=-1)[1] * 2,
            lambda self, x, rows: x.split([2, 2], dim=1)[1] * 2,
        ],
        [
            lambda self, x, rows: x.split(4, dim=-1)[1] * 2,
            lambda self, x, rows: x.split([1, 1], dim=0)[1] * 2,
            lambda self, x, rows: x.chunk(2, dim=-1)[1] * 2,
            lambda self, x, rows: x[..., 3:] * 2,
        ],
    ),
    (
        "a short suffix",
        [
            lambda self, x, rows: torch.cat([x, x[..., :2]], dim=-1),
            lambda self, x, rows: torch.cat([x, x[..., :0]], dim=3),
        ],
        [
            lambda self, x, rows: torch.cat([x[..., :2], x], dim=-1),
            lambda self, x, rows: torch.cat([-x[..., 4:], x[..., :4]], dim=-1),
            lambda self, x, rows: torch.cat([x, x[:, :1]], dim=1),
            lambda self, x, rows: torch.cat([x[0], x[0, :, :, :2]], dim=-1),
        ],
    ),
    (
        "an unsigned type",
        [lambda self, x, rows: (rows.to(torch.uint32).view(2, 1)).expand(2, 3)],
        [lambda self, x, rows: (rows + 1).to(torch.uint32)],
    ),
    (
        "the indices of topk",
        [
            lambda self, x, rows: x.topk(2).indices,
            lambda self, x, rows: torch.where(x.topk(2)[1] >= 0, 1.0, 2.0),
        ],
        [
            lambda self, x, rows: x.topk(2)[1].to(torch.int32) + 1,
            lambda self, x, rows: x.topk(2)[0] * 2,
        ],
    ),
    (
        "a source that is not contiguous",
        [
            lambda self, x, rows: written(self, x.view(2, 4, 8, 6).transpose(2, 3)),
            lambda self, x, rows: put(self, x.view(2, 4, 8, 6).transpose(2, 3), rows.long()),
        ],
        [
            lambda self, x, rows: written(self, x.view(2, 4, 8, 6).transpose(2, 3).contiguous()),
            lambda self, x, rows: put(self, x, rows.long()),
        ],
    ),
    (
        "a cast to another device",
        [lambda self, x, rows: x.to(device="cpu", dtype=torch.float16)],
        [
            lambda self, x, rows: x.to(torch.float16),
            lambda self, x, rows: x.half() * 2,
            lambda self, x, rows: x.to("cpu") * 2,
        ],
    ),
    (
        "a store to some elements",
        [
            lambda self, x, rows: strided(self, x),
            lambda self, x, rows: x.slice_scatter(x[..., :4], dim=3, step=2),
            lambda self, x, rows: put_last(x, rows),
        ],
        [
            lambda self, x, rows: put(self, x, rows.long()),
            lambda self, x, rows: x.slice_scatter(x[..., :4], dim=3, start=4),
            lambda self, x, rows: torch.index_put(x, (rows.long(), rows.long()), x[0, :2]),
        ],
    ),
    (
        "an inner slice",
        [lambda self, x, rows: x[:, 1:].contiguous()],
        [
            lambda self, x, rows: x[1:].contiguous() * 2,
            lambda self, x, rows: x[:, :2].contiguous(),
            lambda self, x, rows: x[:, 1:] * 2,
        ],
    ),
    (
        "a number that fills",
        [lambda self, x, rows: x.masked_fill(x > 0, -1e9)],
        [
            lambda self, x, rows: x.masked_fill(x > 0, x.new_full((), -1e9)),
            lambda self, x, rows: torch.where(x > 0, x, -1e9),
        ],
    ),
    (
        "integers are computed",
        [
            lambda self, x, rows: (x > 0).sum(dim=-1),
            lambda self, x, rows: (rows.long() + 1).to(torch.int32),
            lambda self, x, rows: torch.where(x[0, 0, 0] > 0, torch.arange(8), 0).int(),
        ],
        [
            lambda self, x, rows: (x > 0).sum(dim=-1, dtype=torch.int32),
            lambda self, x, rows: x.argmax(dim=-1).to(torch.int32) + 1,
            lambda self, x, rows: x[rows.long()[:, None], torch.arange(4)[None]] * 2,
        ],
    ),
]


def test_every_rule_has_cases() -> None:
    covered = {rule(start) for start, _, _ in CASES}
    assert covered == RULES.keys() - {rule("the graph depends on a value")}


@pytest.mark.parametrize(
    ("start", "function"),
    [(start, function) for start, broken, _ in CASES for function in broken],
)
def test_what_breaks_a_rule(start: str, function: Function) -> None:
    assert rule(start) in rules_broken(function)


@pytest.mark.parametrize("function", [function for _, _, sound in CASES for function in sound])
def test_what_is_sound(function: Function) -> None:
    assert rules_broken(function) == set()


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x, rows: x[: rows.sum().item()] * 2,
        lambda self, x, rows: (x > 0).nonzero(),
        lambda self, x, rows: x * rows.max().item(),
    ],
)
def test_a_graph_that_depends_on_a_value(function: Function) -> None:
    assert rule("the graph depends on a value") in rules_broken(function)


def test_a_divergence_says_where_and_what_to_do() -> None:
    def splits(self: Calls, x: Tensor, rows: Tensor) -> Tensor:
        return x.split([3, 5], dim=-1)[1] * 2

    (found,) = find_divergences(torch.export.export(Calls(splits), (X, ROWS), strict=False))
    assert str(found) == (
        "split_with_sizes: a split by a list of sizes takes wrong elements, but along the first "
        "dimension; slice, chunk, or split by one size"
    )
