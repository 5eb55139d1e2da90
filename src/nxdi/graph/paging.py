"""Block tables as callers give them: what a paged step may write and read."""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.errors import ShapeError


def default_blocks(num_rows: int, config: NeuronConfig) -> Tensor:
    """A block table [R, n] where row r owns the r-th part of the pool, as if it had rows.

    Raises: ShapeError if the pool has not enough blocks for that.
    """
    per_row = -(-config.max_length // config.pa_block_size)
    if num_rows * per_row > config.pa_num_blocks:
        raise ShapeError(
            f"{num_rows} rows of max_length={config.max_length} need {num_rows * per_row} blocks, "
            f"but pa_num_blocks={config.pa_num_blocks}; pass block_table, or raise pa_num_blocks"
        )
    return torch.arange(num_rows * per_row, dtype=torch.int32).view(num_rows, per_row)


def check_blocks(blocks: Tensor, positions: Tensor, config: NeuronConfig) -> None:
    """Refuse tables that would read or write a wrong block.

    Shapes: blocks [R, n], in the order of the tokens they hold; positions [R, S], -1 = padding.
    Raises: ShapeError naming the row and the block.
    """
    num_rows = positions.shape[0]
    if blocks.dim() != 2 or blocks.shape[0] != num_rows:
        raise ShapeError(
            f"block_table has shape {tuple(blocks.shape)}, needs [{num_rows}, blocks per row]"
        )
    needed: list[list[int]] = []
    written: dict[int, int] = {}
    for row, (table, places) in enumerate(zip(blocks.tolist(), positions.tolist(), strict=True)):
        real = [place for place in places if place >= 0]
        needed.append(_blocks_up_to(real[-1], table, row, config))
        for block in needed[row][real[0] // config.pa_block_size :]:
            if written.setdefault(block, row) != row:
                raise ShapeError(
                    f"rows {written[block]} and {row} would both write block {block}; a block that "
                    "is written belongs to one row"
                )
    for row, block in ((row, block) for row, table in enumerate(needed) for block in table):
        if written.get(block, row) != row:
            raise ShapeError(
                f"row {written[block]} would write block {block}, which row {row} reads in the "
                "same step; a block that is written belongs to one row"
            )


def _blocks_up_to(position: int, table: list[int], row: int, config: NeuronConfig) -> list[int]:
    """The blocks that hold a row's tokens up to `position`, all of the pool and each once."""
    size = config.pa_block_size
    if len(table) * size <= position:
        raise ShapeError(
            f"row {row} has {len(table)} blocks of {size} tokens, too few for position "
            f"{position}; pass all blocks of its sequence"
        )
    needed = table[: position // size + 1]
    outside = [block for block in needed if not 0 <= block < config.pa_num_blocks]
    if outside or len(set(needed)) < len(needed):
        raise ShapeError(
            f"row {row} has the blocks {needed}, which must be distinct numbers from 0 to "
            f"{config.pa_num_blocks - 1} (pa_num_blocks - 1)"
        )
    return needed


def check_slots(slots: Tensor, blocks: Tensor, positions: Tensor, block_size: int) -> None:
    """Raises: ShapeError unless `slots` [R, S], -1 = padding, is where `blocks` puts each token."""
    places = positions.clamp(min=0).long()
    expected = blocks.long().gather(1, places // block_size) * block_size + places % block_size
    expected = torch.where(positions < 0, -1, expected)
    if slots.shape != expected.shape or not torch.equal(slots.long(), expected):
        raise ShapeError(
            f"slot_mapping={slots.tolist()} is not where block_table puts these tokens: "
            f"{expected.tolist()}; leave it out"
        )


def positions_between(input_ids: Tensor, computed_lens: Tensor | None, full_lens: Tensor) -> Tensor:
    """Positions [R, S] of tokens that bring each row from `computed_lens` to `full_lens` tokens.

    Raises: ShapeError if a row has no new token, or more than `input_ids` [R, S] has.
    """
    full = full_lens.flatten()
    computed = torch.zeros_like(full) if computed_lens is None else computed_lens.flatten()
    counts = full - computed
    num_rows, width = input_ids.shape
    if len(full) != num_rows or len(computed) != num_rows:
        raise ShapeError(f"context lengths of {len(full)} rows for {num_rows} rows of input_ids")
    if bool((counts < 1).any()) or bool((counts > width).any()):
        raise ShapeError(
            f"full_context_lens={full.tolist()} less computed_context_lens={computed.tolist()} "
            f"must be between 1 and the {width} tokens of input_ids"
        )
    steps = torch.arange(width)[None]
    places = torch.where(steps < counts[:, None], computed[:, None] + steps, -1)
    return places.to(torch.int32)
