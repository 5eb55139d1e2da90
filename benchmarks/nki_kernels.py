"""Predicted times of our NKI kernels at the shapes of models, by the simulator.

    python benchmarks/nki_kernels.py [--target trn2]

bandwidth: bytes to and from memory over what DMA moves at best. peak: products over what the tensor
engine does at best. Both as shares of the predicted time, which leaves the launch out.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nxdi.kernels import simulate
from nxdi.kernels.nki import load_kernels

BF16 = torch.bfloat16


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Case:
    """One run of a kernel on one core."""

    kernel: str
    what: str
    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


def _norm(kernel: str, rows: int) -> Case:
    return Case(kernel, f"{rows} x 8192", (empty(rows, 8192), empty(1, 8192)))


def _rope(rows: int) -> Case:
    heads = empty(rows, 32, 128), empty(rows, 8, 128)
    return Case("rope", f"{rows} tokens, 32 + 8 heads of 128", (*heads, *2 * (empty(rows, 128),)))


def _qkv(rows: int, fused: bool) -> Case:
    """Attention of an 8B model."""
    options = {"gamma": empty(1, 4096), "cos": empty(rows, 128), "sin": empty(rows, 128)}
    what = f"{rows} x 4096 x 6144" + ", norm and rope" * fused
    args = (empty(rows, 4096), empty(4096, 6144), 32, 8)
    return Case("qkv", what, args, options if fused else {})


def _router(rows: int) -> Case:
    return Case("router_topk", f"{rows} x 4096, 8 of 128", (empty(rows, 4096), empty(128, 4096), 8))


def _moe(tokens: int, top_k: int, experts: int, hidden: int, inner: int) -> Case:
    weights = empty(experts, hidden, 2 * inner), empty(experts, inner, hidden)
    choices = (empty(tokens, top_k, dtype=dtype) for dtype in (torch.float32, torch.int32))
    what = f"{tokens} tokens, {top_k} experts of {hidden} x {inner}"
    return Case("moe_decode", what, (empty(tokens, hidden), *weights, *choices))


def _sampling(rows: int, vocabulary: int, top_k: int) -> Case:
    return Case("sampling", f"{top_k} of {rows} x {vocabulary}", (empty(rows, vocabulary), top_k))


CASES = [
    _norm("rmsnorm", 2048),
    _norm("rmsnorm_quant", 2048),
    _rope(2048),
    *(_qkv(rows, fused) for rows in (1, 1024) for fused in (False, True)),
    *map(_router, (1, 64, 2048)),
    _moe(1, 8, 128, 2048, 768),
    _moe(4, 8, 128, 2048, 192),
    _moe(1, 4, 32, 2880, 720),
    _moe(1, 2, 8, 4096, 1792),
    _sampling(1, 128256, 1),
    _sampling(8, 128256, 1),
    _sampling(1, 128256, 64),
    _sampling(128, 32064, 1),
]


def row(case: Case, target: str) -> str:
    simulation = simulate(
        getattr(load_kernels(case.kernel), case.kernel), target=target, numerics="shapes"
    )
    simulation(*case.args, **case.options)
    report = simulation.report()
    bandwidth = report.dma_gb_per_s / report.memory_gb_per_s
    peak = report.tflops / report.peak_tflops
    return (
        f"| {case.kernel} | {case.what} | {report.time_us:.1f} | {report.bound_by} | "
        f"{bandwidth:.0%} | {peak:.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", default="trn2")
    target = parser.parse_args().target
    print("| kernel | shape | us | bound by | bandwidth | peak |\n|---|---|---|---|---|---|")
    for case in CASES:
        print(row(case, target))


if __name__ == "__main__":
    main()
