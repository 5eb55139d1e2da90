"""Laws 3 and 5 for caches: many steps or one, a rolling cache or the whole past, all the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from nxdi.kernels.masks import Causal, Chunked, MaskPolicy, SlidingWindow
from nxdi.modules.attention.attend import Attend
from nxdi.modules.kvcache import ChunkedCache, ContiguousCache, KVCacheLayout, WindowCache
from nxdi.modules.kvcache.spec import CacheState
from nxdi.types import Phase
from tiny_modules import drawn, layer_context
from tolerances import ATTENTION_FP32

MAX_LEN, ROWS, HEADS, HEAD_DIM = 20, 3, 2, 4


def attention_of_all_tokens(
    layout: KVCacheLayout,
    mask: MaskPolicy,
    prompt_lens: list[int],
    num_new: int,
    more_lens: Sequence[int] = (0,) * ROWS,
) -> Tensor:
    """Prefill each row, extend it, then decode.

    Returns: [ROWS, MAX_LEN, ...] by position, 0 where none is.
    """
    k, v, q = drawn(3, ROWS, HEADS, MAX_LEN, HEAD_DIM)
    out = torch.zeros(ROWS, MAX_LEN, HEADS, HEAD_DIM)
    # Not empty: what an earlier sequence left in a row must not show.
    cache = CacheState(*(torch.full(shape, 9.0) for shape in layout.shapes(ROWS)))
    starts, ends = torch.tensor(prompt_lens), torch.tensor(prompt_lens) + torch.tensor(more_lens)
    steps = [(Phase.PREFILL, between(torch.zeros_like(starts), starts))]
    if any(more_lens):
        steps.append((Phase.EXTEND, between(starts, ends)))
    steps += [(Phase.DECODE, between(ends + i, ends + i + 1)) for i in range(num_new)]
    for phase, where in steps:
        ctx = layer_context(phase, where, cache, num_slots=int(where.max()) + 1)
        index = where.clamp(min=0)[:, None, :, None].expand(-1, HEADS, -1, HEAD_DIM)
        new_q, new_k, new_v = (x.gather(2, index) for x in (q, k, v))
        got = Attend(mask, 0.5)(new_q, ctx.append(layout, new_k, new_v), None, ctx)
        cache = ctx.step.caches[0]
        for row, column in (where >= 0).nonzero().tolist():
            out[row, where[row, column]] = got[row, :, column]
    return out


def between(starts: Tensor, ends: Tensor) -> Tensor:
    """The positions from start to end - 1 of each row, -1 = padding. [ROWS] twice -> [ROWS, S]."""
    places = starts.unsqueeze(1) + torch.arange(int((ends - starts).max()))
    return torch.where(places < ends.unsqueeze(1), places, -1)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=ATTENTION_FP32, atol=ATTENTION_FP32)


def local_cache(mask: MaskPolicy) -> KVCacheLayout:
    """The cache that holds no more than a mask lets see."""
    if isinstance(mask, SlidingWindow):
        return WindowCache(HEADS, mask.window, (HEAD_DIM, HEAD_DIM))
    if isinstance(mask, Chunked):
        return ChunkedCache(HEADS, mask.chunk_size, (HEAD_DIM, HEAD_DIM))
    return CONTIGUOUS


prompts = st.lists(st.integers(1, 8), min_size=ROWS, max_size=ROWS)
extended = st.lists(st.integers(0, 7), min_size=ROWS, max_size=ROWS)
local_masks = st.builds(SlidingWindow, st.integers(1, MAX_LEN)) | st.builds(
    Chunked, st.integers(1, MAX_LEN)
)
CONTIGUOUS = ContiguousCache(HEADS, MAX_LEN, (HEAD_DIM, HEAD_DIM))


@given(prompts, extended, st.integers(0, 5), local_masks)
@example([8, 1, 4], [0, 7, 1], 5, SlidingWindow(4))
@example([4, 4, 5], [7, 3, 2], 5, SlidingWindow(1))
@example([8, 1, 3], [7, 2, 1], 5, Chunked(4))
@example([4, 3, 8], [0, 0, 0], 5, Chunked(4))
@example([5, 4, 3], [7, 7, 5], 5, Chunked(1))
def test_a_rolling_cache_is_the_whole_cache_under_the_same_mask(
    prompt_lens: list[int], more_lens: list[int], num_new: int, mask: MaskPolicy
) -> None:
    close(
        attention_of_all_tokens(local_cache(mask), mask, prompt_lens, num_new, more_lens),
        attention_of_all_tokens(CONTIGUOUS, mask, prompt_lens, num_new, more_lens),
    )


@given(prompts, extended, st.integers(0, 5), st.just(Causal()) | local_masks)
@example([5, 3, 4], [7, 2, 5], 5, Chunked(4))
def test_several_steps_are_one_prefill(
    prompt_lens: list[int], more_lens: list[int], num_new: int, mask: MaskPolicy
) -> None:
    layout = local_cache(mask)
    whole = [n + more + num_new for n, more in zip(prompt_lens, more_lens, strict=True)]
    close(
        attention_of_all_tokens(layout, mask, prompt_lens, num_new, more_lens),
        attention_of_all_tokens(layout, mask, whole, 0),
    )


@pytest.mark.parametrize(
    ("layout", "mask"),
    [
        (WindowCache(HEADS, 4, (HEAD_DIM, HEAD_DIM)), SlidingWindow(5)),
        (WindowCache(HEADS, 4, (HEAD_DIM, HEAD_DIM)), Causal()),
        (CONTIGUOUS, SlidingWindow(3)),
        (ChunkedCache(HEADS, 4, (HEAD_DIM, HEAD_DIM)), SlidingWindow(4)),
        (CONTIGUOUS, Chunked(4)),
    ],
)
def test_the_law_can_fail(layout: KVCacheLayout, mask: MaskPolicy) -> None:
    expected = attention_of_all_tokens(CONTIGUOUS, SlidingWindow(4), [6, 3, 1], 5)
    with pytest.raises(AssertionError):
        close(attention_of_all_tokens(layout, mask, [6, 3, 1], 5), expected)
