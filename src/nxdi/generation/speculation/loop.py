"""generate() with speculation: each row goes on by as many tokens as it keeps."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from nxdi.generation.ahead import Starter
from nxdi.generation.loop import Streamer
from nxdi.generation.rows import Row, row_inputs
from nxdi.generation.speculation.proposals import Proposal, Rule, Seen
from nxdi.generation.speculation.step import Brought, Going, Speculation


@dataclass
class GeneratedRow:
    """One row of a batch.

    id: its cache row; table: as `Row`'s. prompt [T]: as the caller gave it, with padding. tokens:
    those of it that are real, then the new ones. stopped_at: new tokens it had when a criterion
    stopped it; what comes after does not count, unless rows are to have equal lengths. num_held: as
    `Going`'s.
    """

    id: int
    table: Sequence[int]
    prompt: Tensor
    tokens: list[int]
    seed: int = 0
    sampling_params: tuple[float, float, float] = (1, 1.0, 1.0)
    new: list[int] = field(default_factory=list)
    stopped_at: int | None = None
    num_held: int = 0

    def shown(self, more: Sequence[int] = ()) -> Tensor:
        """input_ids [1, T] as transformers' processors and criteria see them, `more` tokens on."""
        new = torch.tensor([*self.new, *more], dtype=self.prompt.dtype)
        return torch.cat([self.prompt, new]).unsqueeze(0)

    def take(self, brought: Brought, stopping: StoppingCriteriaList) -> None:
        """Have more tokens, and see whether the row stops at one of them."""
        is_over: Any = stopping  # its annotations name tensor subclasses
        self.num_held = brought.num_held
        for token in brought.tokens:
            self.new.append(token)
            self.tokens.append(token)
            if self.stopped_at is None and bool(is_over(self.shown(), None).all()):
                self.stopped_at = len(self.new)


@dataclass
class Batch:
    """The rows of one generate() call.

    pad_token_id: what stopped rows go on with; None: with tokens of their own.
    """

    rows: list[GeneratedRow]
    pad_token_id: int | None

    def waiting(self) -> list[tuple[GeneratedRow, int | None]]:
        """The rows that need more tokens, and how many; None: until a criterion stops it."""
        running = [row for row in self.rows if row.stopped_at is None]
        if running or self.pad_token_id is not None:
            return [(row, None) for row in running]
        width = self._width(self.rows)
        return [(row, width - len(row.new)) for row in self.rows if len(row.new) < width]

    def column(self, index: int) -> Tensor:
        """The new tokens at one place [B]."""
        return torch.tensor([self._token(row, index) for row in self.rows])

    @property
    def num_columns(self) -> int:
        """How many columns are known."""
        running = [len(row.new) for row in self.rows if row.stopped_at is None]
        return min(running) if running else self._width(self.rows)

    def new_tokens(self) -> Tensor:
        """All new tokens [B, new]."""
        return torch.stack([self.column(index) for index in range(self.num_columns)], dim=1)

    def _token(self, row: GeneratedRow, index: int) -> int:
        is_over = row.stopped_at is not None and index >= row.stopped_at
        if is_over and self.pad_token_id is not None:
            return self.pad_token_id
        return row.new[index]

    @staticmethod
    def _width(rows: Sequence[GeneratedRow]) -> int:
        return max(row.stopped_at or 0 for row in rows)


def speculative_loop(
    speculation: Speculation,
    rule: Rule,
    batch: Batch,
    *,
    stopping: StoppingCriteriaList,
    starter: Starter,
    streamer: Streamer | None = None,
) -> None:
    """Extend the rows of `batch` until `stopping` holds for each.

    A step is given to `starter` before the streamer sees the tokens of the one before.
    """
    longest = (stopping.max_length or 0) - len(batch.rows[0].prompt)
    num_streamed = 0
    while waiting := batch.waiting():
        rows = [row for row, _ in waiting]
        left = [longest - len(row.new) if most is None else most for row, most in waiting]
        step = starter.start(partial(_advance, speculation, rule, rows, left))
        try:
            if streamer is not None and batch.pad_token_id is not None:
                num_streamed = _stream(streamer, batch, num_streamed)
        except BaseException:
            step.drop()
            raise
        for row, brought in zip(rows, step.result(), strict=True):
            row.take(brought, stopping)
    if streamer is not None:
        _stream(streamer, batch, num_streamed)
        streamer.end()


def _stream(streamer: Streamer, batch: Batch, start: int) -> int:
    """Put the columns from `start` on that are known. Returns: how many are put by now."""
    for index in range(start, batch.num_columns):
        streamer.put(batch.column(index))
    return batch.num_columns


def _advance(
    speculation: Speculation, rule: Rule, rows: Sequence[GeneratedRow], left: Sequence[int]
) -> list[Brought]:
    """The next tokens of each row, of which it needs at most as many as are `left`.

    Rows without new tokens, and those at LongRoPE's switch, are prefilled.
    """
    model = speculation.model
    whole = [not row.new or len(row.tokens) - 1 == model.prefill_again_at for row in rows]
    found: dict[Hashable, Brought] = {}
    if prompts := [row for row, is_whole in zip(rows, whole, strict=True) if is_whole]:
        inputs = [Row(row.tokens, 0, row.table) for row in prompts]
        output = model(**row_inputs(model.neuron_config, inputs), **rule.inputs(prompts))
        for index, row in enumerate(prompts):
            tokens = rule.accept(row, Proposal(), output, index).tokens
            found[row.id] = Brought(tokens, None, len(row.tokens))
        speculation.proposer.watch(
            [Seen(row, row.tokens, 0, output, index) for index, row in enumerate(prompts)]
        )
    going = [
        Going(
            row,
            row.table,
            row.num_held,
            speculation.most(len(row.tokens), row.num_held, num_left),
            num_left - 1,
        )
        for row, num_left, is_whole in zip(rows, left, whole, strict=True)
        if not is_whole
    ]
    if going:
        for goes, brought in zip(going, speculation.step(going, rule), strict=True):
            found[goes.sequence.id] = brought
    return [found[row.id] for row in rows]
