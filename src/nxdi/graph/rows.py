"""From what a caller passes (masks, positions, padding on either side) to clean rows of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi.errors import ShapeError
from nxdi.types import Phase


def row_positions(
    input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> Tensor:
    """The position of each token of `input_ids` [B, S] in its row, -1 = padding; int32 [B, S].

    The mask may be as long as the input, or longer, when it also covers tokens of earlier steps.
    Raises: ShapeError for shapes or positions that do not fit together.
    """
    if input_ids.dim() != 2 or 0 in input_ids.shape:
        raise ShapeError(
            f"input_ids has shape {tuple(input_ids.shape)}, needs [batch, tokens] with at least "
            "one token"
        )
    if attention_mask is None and position_ids is None:
        attention_mask = torch.ones_like(input_ids)
    if attention_mask is None:
        assert position_ids is not None
        return _checked(position_ids, input_ids).to(torch.int32)
    if attention_mask.dim() != 2 or attention_mask.shape[0] != input_ids.shape[0]:
        raise ShapeError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids "
            f"{tuple(input_ids.shape)}"
        )
    if attention_mask.shape[1] < input_ids.shape[1]:
        raise ShapeError(
            f"attention_mask covers {attention_mask.shape[1]} tokens, input_ids has "
            f"{input_ids.shape[1]}"
        )
    is_real = attention_mask.bool()
    positions = torch.where(is_real, is_real.long().cumsum(dim=1) - 1, -1)[:, -input_ids.shape[1] :]
    if position_ids is not None and position_ids.shape != input_ids.shape:
        raise ShapeError(
            f"position_ids has shape {tuple(position_ids.shape)}, input_ids "
            f"{tuple(input_ids.shape)}"
        )
    if position_ids is not None and attention_mask.shape[1] == input_ids.shape[1]:
        # A mask of ones over the new tokens only: the positions say which rows continue, and where.
        continues = position_ids.amin(dim=1, keepdim=True) > 0
        positions = torch.where(continues & is_real, position_ids, positions)
    return positions.to(torch.int32)


def _checked(position_ids: Tensor, input_ids: Tensor) -> Tensor:
    if position_ids.shape != input_ids.shape:
        raise ShapeError(
            f"position_ids has shape {tuple(position_ids.shape)}, input_ids "
            f"{tuple(input_ids.shape)}"
        )
    return position_ids


def packed_left(input_ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows with their padding on the right; columns that are all padding are dropped.

    Raises: ShapeError if a row has no token, or its positions are not consecutive.
    """
    is_real = positions >= 0
    counts = is_real.sum(dim=1)
    if int(counts.min()) == 0:
        raise ShapeError(f"row {int(counts.argmin())} has no token; every row needs at least one")
    order = torch.argsort((~is_real).long(), dim=1, stable=True)[:, : int(counts.max())]
    ids, positions = input_ids.gather(1, order), positions.gather(1, order)
    steps = positions[:, 1:] - positions[:, :-1]
    if not bool(((steps == 1) | (positions[:, 1:] < 0)).all()):
        raise ShapeError(
            f"position_ids must count up by one within each row, but are {positions.tolist()}"
        )
    return ids, positions


def phase_of(positions: Tensor) -> Phase:
    """Prefill if rows start at position 0; decode if they continue with one token each, or extend.

    Shapes: positions [B, S], packed to the left.
    Raises: ShapeError if some start and some continue.
    """
    starts = positions[:, 0] == 0
    if bool(starts.all()):
        return Phase.PREFILL
    if bool(starts.any()):
        raise ShapeError(
            f"rows {starts.nonzero().flatten().tolist()} start at position 0 and the others "
            "continue; run new prompts and running sequences in separate steps"
        )
    return Phase.DECODE if positions.shape[1] == 1 else Phase.EXTEND


def check_rows(seq_ids: Tensor, num_rows: int, max_rows: int) -> None:
    """Raises: ShapeError unless seq_ids [num_rows] are distinct cache rows below `max_rows`."""
    ids = seq_ids.tolist()
    if len(ids) != num_rows or len(set(ids)) != len(ids) or not all(0 <= i < max_rows for i in ids):
        raise ShapeError(
            f"seq_ids={ids} must be {num_rows} distinct numbers from 0 to {max_rows - 1} "
            "(batch_size - 1)"
        )


def check_tokens(input_ids: Tensor, vocab_size: int) -> None:
    """Raises: ShapeError naming the first token outside the vocabulary."""
    outside = (input_ids < 0) | (input_ids >= vocab_size)
    if bool(outside.any()):
        row, column = outside.nonzero()[0].tolist()
        raise ShapeError(
            f"token {int(input_ids[row, column])} at row {row}, column {column} is not below "
            f"vocab_size={vocab_size}"
        )
