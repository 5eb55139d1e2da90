"""Attention on a CPU: as the reference, reading only what a row sees, row by row the same bits."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attend_calls import HEAD_DIM, check, make_call
from nxdi.errors import ShapeError
from nxdi.kernels.cpu import library
from nxdi.kernels.cpu.attend import (
    ATTEND_C_SHIM,
    ATTEND_KERNEL,
    attend_decode,
    attend_sdpa,
    load_attend_op,
)
from nxdi.kernels.masks import Causal, MaskPolicy, SlidingWindow
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.reference.attend import attend_explicit
from nxdi.kernels.registry import choose, platform
from tolerances import ATTENTION_FP32

MASKS: list[MaskPolicy] = [Causal(), SlidingWindow(3)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (key heads, queries of each, keys, head size): below, at and above a block, a vector and a tile.
SIZES = [
    (1, 1, 1, 1),
    (2, 3, 31, 8),
    (1, 9, 33, 33),
    (3, 3, 257, 64),
    (2, 7, 64, 80),
    (1, 17, 70, 5),
]


@pytest.fixture(scope="module")
def op() -> Any:
    return load_attend_op()


def drawn(
    batch: int, sizes: tuple[int, int, int, int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, and a mask with holes in which every row sees at least one key."""
    heads, group, num_keys, head_size = sizes
    generator = torch.Generator().manual_seed(batch + sum(sizes))
    q = 2 * torch.randn(batch, heads, group, 1, head_size, generator=generator)
    k, v = torch.randn(2, batch, heads, num_keys, head_size, generator=generator).to(dtype)
    allowed = torch.rand(batch, 1, num_keys, generator=generator) < 0.6
    allowed[torch.arange(batch), 0, torch.arange(batch) % num_keys] = True
    return q, k, v, allowed


def expected(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, sinks: Tensor | None, call: AttendCall
) -> Tensor:
    return attend_explicit(q, k.float(), v.float(), allowed, sinks, call)


def assert_close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=ATTENTION_FP32, atol=ATTENTION_FP32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("batch", [1, 8])
def test_decode_equals_the_reference(
    batch: int, has_sinks: bool, softcap: float | None, dtype: torch.dtype
):
    for sizes in SIZES:
        q, k, v, allowed = drawn(batch, sizes, dtype)
        sinks = torch.linspace(-2, 2, sizes[0] * sizes[1]).view(sizes[:2]) if has_sinks else None
        call = make_call(1, sizes[2], scale=0.3, softcap=softcap, has_sinks=has_sinks)
        got = attend_decode(q, k, v, allowed, sinks, call)
        assert got.dtype == torch.float32
        assert got.is_contiguous()
        assert_close(got, expected(q, k, v, allowed, sinks, call))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_decode_under_each_mask(mask: MaskPolicy, softcap: float | None, has_sinks: bool):
    check(attend_decode, make_call(1, 9, mask=mask, softcap=softcap, has_sinks=has_sinks))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("num_queries", "num_keys"), [(6, 6), (1, 9), (2, 5)])
def test_sdpa(mask: MaskPolicy, num_queries: int, num_keys: int):
    check(attend_sdpa, make_call(num_queries, num_keys, mask=mask))


@pytest.mark.parametrize("value_dim", [HEAD_DIM - 3, HEAD_DIM + 5])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(6, 6), (1, 9), (2, 5)])
def test_sdpa_with_values_of_another_size(value_dim: int, num_queries: int, num_keys: int):
    check(attend_sdpa, make_call(num_queries, num_keys, value_dim=value_dim))


def test_sdpa_without_the_promise_of_alignment():
    check(attend_sdpa, make_call(6, 6, aligned=False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_in_any_batch_and_with_any_threads(
    op: Any, dtype: torch.dtype
):
    for sizes in SIZES:
        q, k, v, allowed = drawn(8, sizes, dtype)
        alone = [op(*(t[i : i + 1] for t in (q, k, v, allowed)), None, 0.3, None) for i in range(8)]
        for num_rows in range(1, 9):
            rows = (t[:num_rows] for t in (q, k, v, allowed))
            assert torch.equal(op(*rows, None, 0.3, None), torch.cat(alone[:num_rows]))
        num_threads = torch.get_num_threads()
        torch.set_num_threads(3)
        assert torch.equal(op(q, k, v, allowed, None, 0.3, None), torch.cat(alone))
        torch.set_num_threads(num_threads)


def test_what_a_row_does_not_see_is_not_read(op: Any):
    """A longer bucket changes no bit, whatever stands in its other slots."""
    q, k, v, allowed = drawn(2, (2, 3, 100, 64))
    wanted = op(q, k, v, allowed, None, 0.3, None)
    unseen = ~allowed[:, :, :, None]
    k, v = k.masked_fill(unseen, torch.nan), v.masked_fill(unseen, torch.inf)
    k, v = (torch.cat([t, torch.full_like(t, torch.nan)], dim=2) for t in (k, v))
    allowed = torch.cat([allowed, torch.zeros_like(allowed)], dim=2)
    assert torch.equal(op(q, k, v, allowed, None, 0.3, None), wanted)


@pytest.mark.parametrize("has_sinks", [False, True])
def test_a_row_that_sees_nothing_is_zero_and_disturbs_no_other(op: Any, has_sinks: bool):
    q, k, v, allowed = drawn(3, (2, 3, 40, 16))
    sinks = torch.ones(2, 3) if has_sinks else None
    wanted = op(q, k, v, allowed, sinks, 0.3, None)
    allowed[1] = False
    got = op(q, k, v, allowed, sinks, 0.3, None)
    assert torch.equal(got[1], torch.zeros_like(got[1]))
    assert torch.equal(got[[0, 2]], wanted[[0, 2]])


def test_scores_far_apart_and_far_from_zero(op: Any):
    q, k, v, allowed = drawn(2, (2, 3, 90, 32))
    call = make_call(1, 90, scale=1.0)
    for factor in (-300.0, 1e-30, 300.0):
        got = op(factor * q, k, v, allowed, None, call.scale, None)
        # Scores of some thousands carry a rounding of 1e-3, and so do their exponentials.
        torch.testing.assert_close(
            got, expected(factor * q, k, v, allowed, None, call), rtol=1e-2, atol=1e-2
        )


def test_numbers_that_are_none_show(op: Any):
    q, k, v, allowed = drawn(2, (1, 2, 50, 8))
    allowed[0, 0, 40] = True
    k[0, 0, 40, 3] = torch.nan
    got = op(q, k, v, allowed, None, 0.3, None)
    assert got[0].isnan().all()
    assert got[1].isfinite().all()


def test_views_of_a_cache_and_any_other_strides(op: Any):
    q, k, v, allowed = drawn(2, (3, 2, 40, 32))
    wanted = op(q, k, v, allowed, None, 0.3, None)
    cache = torch.full((4, 3, 57, 32), torch.nan)
    cache[:2, :, :40] = k
    turned = v.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    wide_q = q.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    every_other = allowed.repeat_interleave(2, dim=2)[:, :, ::2]
    views = (wide_q, cache[:2, :, :40], turned, every_other)
    assert not any(view.is_contiguous() for view in views)
    assert torch.equal(op(*views, None, 0.3, None), wanted)
    one_mask = allowed[:1].expand(2, -1, -1)
    assert torch.equal(
        op(q, k, v, one_mask, None, 0.3, None), op(q, k, v, one_mask.clone(), None, 0.3, None)
    )


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 1, 8), (2, 0, 3, 1, 8), (2, 2, 0, 1, 8), (2, 2, 3, 1, 0)]
)
def test_sizes_of_zero(op: Any, shape: tuple[int, ...]):
    kv, allowed = torch.ones(*shape[:2], 4, shape[4]), torch.ones(shape[0], 1, 4, dtype=torch.bool)
    assert op(torch.ones(shape), kv, kv, allowed, None, 1.0, None).shape == shape
    empty = op(torch.ones(shape), kv[:, :, :0], kv[:, :, :0], allowed[:, :, :0], None, 1.0, None)
    assert torch.equal(empty, torch.zeros(shape))


Q, K, V, ALLOWED = drawn(2, (2, 3, 5, 8))
WRONG = {
    "16-bit q": (Q.bfloat16(), K, V, ALLOWED, None),
    "two queries": (Q.expand(-1, -1, -1, 2, -1), K, V, ALLOWED, None),
    "q without groups": (Q[:, :, 0], K, V, ALLOWED, None),
    "other heads": (Q, K[:, :1], V[:, :1], ALLOWED, None),
    "another head size": (Q, K[..., :4], V, ALLOWED, None),
    "fewer values": (Q, K, V[:, :, :4], ALLOWED, None),
    "a shorter mask": (Q, K, V, ALLOWED[:, :, :4], None),
    "a mask of one row": (Q, K, V, ALLOWED[:1], None),
    "sinks of one head": (Q, K, V, ALLOWED, torch.zeros(1, 3)),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_refused_when_run_and_when_traced(op: Any, arguments: tuple[Any, ...]):
    with pytest.raises(ValueError, match=r"nxdi_cpu::attend_decode: .*must be"):
        op(*arguments, 1.0, None)
    traced = (None if tensor is None else tensor.to("meta") for tensor in arguments)
    with pytest.raises(ShapeError, match=r"attend_decode: .*must be"):
        op(*traced, 1.0, None)


def test_other_dtypes_are_refused(op: Any):
    for arguments in (
        (Q, K, V.half(), ALLOWED, None),
        (Q, K.double(), V.double(), ALLOWED, None),
        (Q, K, V, ALLOWED.int(), None),
        (Q, K, V, ALLOWED, torch.zeros(2, 3).half()),
    ):
        with pytest.raises(ValueError, match=r"nxdi_cpu::attend_decode: .*must be|of one dtype"):
            op(*arguments, 1.0, None)


@pytest.mark.parametrize(
    ("call", "chosen", "refused"),
    [
        (make_call(1, 256), ATTEND_KERNEL, ()),
        (make_call(1, 8192, softcap=2.0, has_sinks=True), ATTEND_KERNEL, ()),
        (make_call(8, 8), "sdpa", (ATTEND_KERNEL,)),
        (make_call(1, 8, dtype=torch.bfloat16), "sdpa", (ATTEND_KERNEL,)),
        (make_call(1, 8, value_dim=HEAD_DIM - 1), "sdpa", (ATTEND_KERNEL,)),
        (make_call(8, 8, softcap=2.0), "explicit", (ATTEND_KERNEL, "sdpa")),
        (make_call(8, 8, has_sinks=True), "explicit", (ATTEND_KERNEL, "sdpa")),
    ],
)
def test_choice(call: AttendCall, chosen: str, refused: tuple[str, ...]):
    with platform("cpu") as choices:
        assert choose("attend", call).name == chosen
    (choice,) = choices
    assert tuple(name for name, _ in choice.refused) == refused
    assert all(reason for _, reason in choice.refused)


def test_choice_where_kernels_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setenv("CXX", "no_such_compiler")
    with platform("cpu") as choices:
        assert choose("attend", make_call(1, 8)).name == "sdpa"
    (choice,) = choices
    assert "no_such_compiler" in choice.refused[0][1]


class Step(nn.Module):
    """Writes a key and a value into the caches that it is given, and attends."""

    def forward(
        self, q: Tensor, new: Tensor, place: Tensor, k: Tensor, v: Tensor, sinks: Tensor
    ) -> Tensor:
        where = (torch.arange(2)[:, None, None], torch.arange(2)[None, :, None], place[:, None])
        keys, values = torch.index_put(k, where, new), torch.index_put(v, where, -new)
        allowed = torch.arange(40)[None, None] <= place[:, :, None]
        call = make_call(1, 40, softcap=4.0, has_sinks=True)
        out = attend_decode(2 * q, keys[:, :, :40], values[:, :, :40], allowed, sinks, call)
        k.copy_(keys)
        v.copy_(values)
        return out


def test_a_compiled_graph_calls_it_directly_and_reads_what_it_wrote(op: Any, tmp_path: Path):
    q, k, v, _ = drawn(2, (2, 3, 41, 16))
    new, place, sinks = torch.ones(2, 2, 1, 16), torch.tensor([[7], [39]]), torch.ones(2, 3)
    arguments = (q, new, place, k, v, sinks)
    package = torch._inductor.aoti_compile_and_package(
        torch.export.export(Step(), arguments, strict=False),
        package_path=str(tmp_path / "model.pt2"),
        inductor_configs={
            "aot_inductor.custom_ops_to_c_shims": {op: [ATTEND_C_SHIM]},
            "aot_inductor.compile_wrapper_opt_level": "O0",
        },
    )
    with zipfile.ZipFile(package) as files:
        sources = [files.read(name) for name in files.namelist() if name.endswith(".cpp")]
    calls = sum(source.count(b"aoti_torch_cpu_attend_decode(") for source in sources)
    assert calls == 2  # declared, called
    plain_k, plain_v = k.clone(), v.clone()
    wanted = Step()(q, new, place, plain_k, plain_v, sinks)
    got = torch._inductor.aoti_load_package(package)(*arguments)
    assert_close(got, wanted)
    assert torch.equal(k, plain_k)
    assert torch.equal(v, plain_v)
