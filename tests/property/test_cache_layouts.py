"""Laws 3 and 5 for caches: many steps or one, a rolling window or the whole past, all the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from nxdi.kernels.masks import Causal, MaskPolicy, SlidingWindow
from nxdi.modules.attention.attend import Attend
from nxdi.modules.kvcache import ContiguousCache, KVCacheLayout, WindowCache
from nxdi.modules.kvcache.spec import CacheState
from nxdi.types import Phase
from tiny_modules import drawn, layer_context
from tolerances import ATTENTION_FP32

MAX_LEN, ROWS, HEADS, HEAD_DIM = 20, 3, 2, 4


def attention_of_all_tokens(
    layout: KVCacheLayout, mask: MaskPolicy, prompt_lens: list[int], num_new: int
) -> Tensor:
    """Prefill each row, then decode. -> [ROWS, MAX_LEN, ...] by position, 0 where none is."""
    k, v, q = drawn(3, ROWS, HEADS, MAX_LEN, HEAD_DIM)
    out = torch.zeros(ROWS, MAX_LEN, HEADS, HEAD_DIM)
    # Not empty: what an earlier sequence left in a row must not show.
    cache = CacheState(*(torch.full(layout.shape(ROWS), 9.0) for _ in range(2)))
    lengths = torch.tensor(prompt_lens)
    width = max(prompt_lens)
    counted = torch.arange(width).expand(ROWS, -1)
    steps = [torch.where(counted < lengths.unsqueeze(1), counted, -1)]
    steps += [(lengths + i).unsqueeze(1) for i in range(num_new)]
    for number, where in enumerate(steps):
        phase = Phase.PREFILL if number == 0 else Phase.DECODE
        ctx = layer_context(phase, where, cache, num_slots=int(where.max()) + 1)
        index = where.clamp(min=0)[:, None, :, None].expand(-1, HEADS, -1, HEAD_DIM)
        new_q, new_k, new_v = (x.gather(2, index) for x in (q, k, v))
        got = Attend(mask, 0.5)(new_q, ctx.append(layout, new_k, new_v), None, ctx)
        cache = ctx.step.caches[0]
        for row, column in (where >= 0).nonzero().tolist():
            out[row, where[row, column]] = got[row, :, column]
    return out


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=ATTENTION_FP32, atol=ATTENTION_FP32)


prompts = st.lists(st.integers(1, 12), min_size=ROWS, max_size=ROWS)
CONTIGUOUS = ContiguousCache(HEADS, MAX_LEN, HEAD_DIM)


@given(prompts, st.integers(0, 8), st.integers(1, MAX_LEN))
@example([12, 1, 4], 8, 4)
@example([4, 4, 5], 8, 1)
def test_window_cache_is_the_whole_cache_under_the_window_mask(
    prompt_lens: list[int], num_new: int, window: int
) -> None:
    mask = SlidingWindow(window)
    rolling = WindowCache(HEADS, window, HEAD_DIM)
    close(
        attention_of_all_tokens(rolling, mask, prompt_lens, num_new),
        attention_of_all_tokens(CONTIGUOUS, mask, prompt_lens, num_new),
    )


@given(prompts, st.integers(0, 8), st.none() | st.integers(1, 6))
def test_prefill_and_decode_are_one_prefill(
    prompt_lens: list[int], num_new: int, window: int | None
) -> None:
    mask: MaskPolicy = Causal() if window is None else SlidingWindow(window)
    layout: KVCacheLayout = CONTIGUOUS if window is None else WindowCache(HEADS, window, HEAD_DIM)
    close(
        attention_of_all_tokens(layout, mask, prompt_lens, num_new),
        attention_of_all_tokens(layout, mask, [n + num_new for n in prompt_lens], 0),
    )


@pytest.mark.parametrize(
    ("layout", "mask"),
    [
        (WindowCache(HEADS, 4, HEAD_DIM), SlidingWindow(5)),
        (WindowCache(HEADS, 4, HEAD_DIM), Causal()),
        (CONTIGUOUS, SlidingWindow(3)),
    ],
)
def test_the_law_can_fail(layout: KVCacheLayout, mask: MaskPolicy) -> None:
    expected = attention_of_all_tokens(CONTIGUOUS, SlidingWindow(4), [6, 3, 1], 5)
    with pytest.raises(AssertionError):
        close(attention_of_all_tokens(layout, mask, [6, 3, 1], 5), expected)
