"""Predicted time of the NKI kernels at full sizes, and what bounds each.

    python benchmarks/nki_kernels.py                     every row, on trn2
    python benchmarks/nki_kernels.py attention --target gen4

The numbers are those of the simulator's cost model: nothing is computed and no device is needed.
"of peak" counts the operations that the result needs (half of them under a causal mask), "of DMA"
the bytes that move, each against what the machine has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BF16, FP8, INT32, UINT8 = "bfloat16", "float8_e4m3fn", "int32", "uint8"


@dataclass(frozen=True)
class Row:
    """One line of the table: a kernel, its arguments, and the operations its result needs."""

    title: str
    kernel: str
    arguments: Callable[[], tuple[Any, ...]]
    flops: float

    @property
    def generations(self) -> tuple[str, ...]:
        """Only later ones gather by DMA."""
        return ("gen3", "gen4") if "paged" in self.title else ("gen2", "gen3", "gen4")


def empty(*sizes: int, dtype: str = BF16) -> Any:
    import torch

    return torch.empty(sizes, dtype=getattr(torch, dtype), device="meta")


def attention_prefill(num_tokens: int, size: int, window: int = 0) -> Row:
    """One head of a prompt."""
    seen = num_tokens if window == 0 else window
    pairs = num_tokens * seen - seen * (seen - 1) // 2
    title = f"attention prefill, {num_tokens} tokens, d={size}" + (
        f", window {window}" * (seen < num_tokens)
    )

    def arguments() -> tuple[Any, ...]:
        keys = empty(1, 1, num_tokens, size)
        return empty(1, 1, 1, num_tokens, size), keys, keys, None, size**-0.5, window

    return Row(title, "attention_prefill", arguments, 4 * pairs * size)


def attention_decode(batch: int, num_keys: int, size: int, kv: str = BF16, block: int = 0) -> Row:
    """One key/value head of each row, with eight query heads."""
    form = f"paged {block}" if block else "flat"
    title = f"attention decode, {batch} x {num_keys} keys, d={size}, {form} {kv}"

    def arguments() -> tuple[Any, ...]:
        cache, blocks = empty(batch, 1, num_keys, size, dtype=kv), None
        if block:
            each = num_keys // block
            cache = empty(batch * each, 1, block, size, dtype=kv)
            blocks = empty(batch, each, dtype=INT32)
        allowed = empty(batch, 1, num_keys, dtype=UINT8)
        return empty(batch, 1, 8, 1, size), cache, cache, allowed, blocks

    return Row(title, "attention_decode", arguments, 4 * batch * 8 * num_keys * size)


def attention_output(num_rows: int, inputs: int, outputs: int) -> Row:
    title = f"attention output, {num_rows} rows, {inputs} -> {outputs}"

    def arguments() -> tuple[Any, ...]:
        return empty(num_rows, inputs), empty(inputs, outputs)

    return Row(title, "attention_output", arguments, 2 * num_rows * inputs * outputs)


def mlp(kernel: str, num_rows: int, hidden: int, intermediate: int, has_norm: bool = False) -> Row:
    """A gated MLP, with an RMSNorm before it where it `has_norm`."""
    phase = kernel.removeprefix("mlp_")
    title = f"MLP {phase}, {num_rows} tokens, {hidden} x {intermediate}" + ", norm" * has_norm

    def arguments() -> tuple[Any, ...]:
        wide = empty(hidden, intermediate)
        gamma = empty(1, hidden) if has_norm else None
        return empty(num_rows, hidden), wide, wide, empty(intermediate, hidden), gamma

    return Row(title, kernel, arguments, 6 * num_rows * hidden * intermediate)


def norm(kernel: str, num_rows: int) -> Row:
    def arguments() -> tuple[Any, ...]:
        return empty(num_rows, 8192), empty(1, 8192)

    return Row(f"{kernel}, {num_rows} x 8192", kernel, arguments, 0)


def rope(num_rows: int) -> Row:
    def arguments() -> tuple[Any, ...]:
        heads = empty(num_rows, 32, 128), empty(num_rows, 8, 128)
        return (*heads, empty(num_rows, 128), empty(num_rows, 128))

    return Row(f"rope, {num_rows} tokens, 32 + 8 heads of 128", "rope", arguments, 0)


def qkv(num_rows: int, is_fused: bool = False) -> Row:
    """Of an 8B model; with norm and rope where it `is_fused`."""
    title = f"qkv, {num_rows} x 4096 x 6144" + ", norm and rope" * is_fused

    def arguments() -> tuple[Any, ...]:
        angles = empty(num_rows, 128), empty(num_rows, 128)
        fused = (None, empty(1, 4096), *angles) if is_fused else ()
        weights = empty(4096, 4096), empty(4096, 1024), empty(4096, 1024)
        return (empty(num_rows, 4096), *weights, 128, *fused)

    return Row(title, "qkv", arguments, 2 * num_rows * 4096 * 6144)


def router(num_rows: int) -> Row:
    title = f"router, {num_rows} x 4096, 8 of 128 experts"

    def arguments() -> tuple[Any, ...]:
        return empty(num_rows, 4096), empty(128, 4096), 8

    return Row(title, "router_topk", arguments, 2 * num_rows * 4096 * 128)


def moe(num_rows: int, top_k: int, experts: int, hidden: int, inner: int) -> Row:
    title = f"MoE decode, {num_rows} tokens, {top_k} experts of {hidden} x {inner}"

    def arguments() -> tuple[Any, ...]:
        weights = empty(experts, hidden, 2 * inner), empty(experts, inner, hidden)
        scores = empty(num_rows, top_k, dtype="float32")
        return (empty(num_rows, hidden), *weights, scores, empty(num_rows, top_k, dtype=INT32))

    return Row(title, "moe_decode", arguments, 6 * num_rows * top_k * hidden * inner)


def sampling(num_rows: int, vocab_size: int, top_k: int) -> Row:
    def arguments() -> tuple[Any, ...]:
        return empty(num_rows, vocab_size), top_k

    return Row(f"top {top_k} of {num_rows} x {vocab_size}", "sampling", arguments, 0)


ROWS = [
    attention_prefill(16384, 128),
    attention_prefill(4096, 128),
    attention_prefill(16384, 128, window=4096),
    attention_prefill(16384, 64),
    attention_decode(8, 8192, 128),
    attention_decode(32, 2048, 128),
    attention_decode(1, 131072, 128),
    attention_decode(8, 8192, 64),
    attention_decode(8, 8192, 128, kv=FP8),
    attention_decode(8, 8192, 128, block=32),
    attention_output(2048, 1024, 8192),
    attention_output(1, 1024, 8192),
    attention_output(64, 1024, 8192),
    mlp("mlp_prefill", 1024, 8192, 4096),
    mlp("mlp_prefill", 1024, 8192, 4096, has_norm=True),
    mlp("mlp_prefill", 4096, 4096, 1792),
    mlp("mlp_decode", 1, 8192, 4096),
    mlp("mlp_decode", 8, 8192, 4096, has_norm=True),
    mlp("mlp_decode", 64, 4096, 1792, has_norm=True),
    norm("rmsnorm", 2048),
    norm("rmsnorm_quant", 2048),
    rope(2048),
    *(qkv(rows, is_fused) for rows in (1, 1024) for is_fused in (False, True)),
    *map(router, (1, 64, 2048)),
    moe(1, 8, 128, 2048, 768),
    moe(4, 8, 128, 2048, 192),
    moe(1, 4, 32, 2880, 720),
    moe(1, 2, 8, 4096, 1792),
    sampling(1, 128256, 1),
    sampling(8, 128256, 1),
    sampling(1, 128256, 64),
    sampling(128, 32064, 1),
]


def show(row: Row, target: str) -> None:
    from nxdi.kernels import simulate
    from nxdi.kernels.nki import load_kernels

    kernel = getattr(load_kernels(row.kernel), row.kernel)
    simulation = simulate(kernel, target=target, numerics="shapes")
    simulation(*row.arguments())
    report = simulation.report()
    peak = row.flops / (report.time_us * 1e6) / report.peak_tflops
    memory = report.dma_gb_per_s / report.memory_gb_per_s
    busy = ", ".join(f"{name} {share:.0%}" for name, share in list(report.busy.items())[:3])
    print(f"{row.title:62} {report.time_us:9.1f} {peak:8.1%} {memory:8.1%}  {busy}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernel", nargs="?", default="", help="rows whose title holds this")
    parser.add_argument("--target", default="gen3", choices=["gen2", "gen3", "gen4"])
    given = parser.parse_args()
    print(f"{'on ' + given.target:62} {'us':>9} {'of peak':>8} {'of DMA':>8}  busy")
    for row in ROWS:
        if given.kernel in row.title and given.target in row.generations:
            show(row, given.target)


if __name__ == "__main__":
    main()
