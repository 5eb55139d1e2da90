"""The rules that a kernel is held to, and how breaking one is reported."""

from __future__ import annotations

import sys
from pathlib import Path

from nxdi.errors import KernelError

_HERE = str(Path(__file__).parent)

# What each rule asks for. An error carries the name; the documentation lists them.
RULES = {
    # tensors
    "accumulator-state": "a reduction continues only what a reset or reduction before it left",
    "address-alignment": "the byte of a manual address is a multiple of the element, in PSUM of 4",
    "address-range": "a manual address and its tensor lie within the buffer",
    "broadcast-dimension": "only a dimension of size 1 is broadcast, and never the partitions",
    "buffer-known": "a buffer is nl.sbuf, nl.psum, nl.hbm, nl.private_hbm or nl.shared_hbm",
    "dtype-known": "a dtype is one of nki.language",
    "index-range": "an index or slice lies within the tensor",
    "manual-overlap": "bytes written through another tensor at the same address are not read",
    "output-shared-hbm": "a kernel returns tensors in nl.shared_hbm",
    "output-written": "every byte of a returned tensor has been written",
    "partition-limit": "an on-chip tensor has at most 128 partitions",
    "partition-start": "more than 64 partitions start at 0, more than 32 at 0 or 64, else at 0..96",
    "pattern-rank": "an access pattern has at most 5 dimensions",
    "psum-capacity": "tensors that live at once take at most 8 PSUM banks",
    "psum-open-groups": "at most one accumulation group per PSUM bank is open",
    "psum-tensor-size": "a PSUM tensor has at most 16 KiB per partition",
    "reinterpret-size": "a reinterpreted tensor keeps its bytes per partition",
    "reshape-size": "a reshaped tensor keeps its partitions and its number of elements",
    "sbuf-capacity": "tensors that live at once fit SBUF",
    "sbuf-tensor-size": "an SBUF tensor fits a partition",
    "tensor-rank": "an on-chip tensor has at least 2 dimensions",
    "uninitialized-read": "bytes are written before they are read",
    # any instruction
    "engine-known": "an engine is a member of nki.isa.engine that has the instruction",
    "generation": "an instruction or mode is offered by the generation",
    "op-known": "an operator is one of nki.language that the instruction takes",
    "op-class": "bitwise operators take integers and are not mixed with arithmetic ones",
    "psum-both": "two inputs of an instruction are not both in PSUM",
    "gpsimd-psum": "GpSimd does not touch PSUM",
    "on-chip": "operands of the compute engines are in SBUF or PSUM",
    "same-dtype": "the instruction needs equal dtypes",
    "same-shape": "partitions and elements per partition match",
    "vector-operand": "a vector operand has shape [partitions, 1]",
    # data movement
    "dma-accumulate": "dma_compute adds up to 16 tensors with scale 1",
    "dma-elements": "source and destination of a DMA have as many elements",
    "dma-psum": "DMA does not touch PSUM",
    "dma-transpose-dtype": "dma_transpose moves elements of 2 bytes",
    "dma-transpose-shape": "dma_transpose keeps to its axes and sizes",
    "hwdge-dtype": "hardware descriptors move bytes: equal dtypes",
    "indirect-dge": "gather and scatter need software descriptors",
    "indirect-index": "an index is an int32 or uint32 tensor [P, 1] in SBUF",
    "indirect-range": "an index lies within the tensor, or oob_mode is skip",
    "indirect-side": "an indirect access of a DMA is on the HBM side",
    "memset-value": "the value has the kind of the dtype",
    "oob-skip": "oob_mode.skip is for indirect access",
    "predicate-dtype": "a predicate is an unsigned integer",
    "register-scalar": "a register holds one element of an integer tensor",
    "scatter-unique": "the indices of a scatter differ",
    "random-dtype": "random bits are written to integers",
    "random-state": "a state has 6 words per partition on GpSimd, 24 on the vector engine",
    "shuffle-mask": "a shuffle mask has 32 entries of 0..31 or 255",
    # tensor engine
    "accumulate-unwritten": "accumulation goes on top of a matmul's result",
    "matmul-bank": "a matmul writes within one PSUM bank",
    "matmul-buffers": "a matmul reads SBUF and writes PSUM",
    "matmul-contraction": "both operands have the same partitions, at most 128",
    "matmul-dst-dtype": "a matmul writes float32, on gen4 also bfloat16",
    "matmul-dst-shape": "dst is [stationary's columns, moving's columns]",
    "matmul-dtypes": "float32 pairs with float32 only; integers are not multiplied",
    "matmul-moving": "the moving tile has at most 512 columns, 4096 on gen4",
    "matmul-stationary": "the stationary tile has at most 128 columns",
    "mx-operands": "microscaling tiles have x4 dtypes, uint8 scales and 32 to 128 partitions",
    "double-row": "double_row takes float8 tiles [K, 2, N] and no column tiling",
    "pe-tile-position": "a tile's position is a multiple of its size, within the array",
    "pe-tile-size": "a tile has 32 (gen3+), 64 or 128 rows and columns",
    "transpose-size": "a transpose has up to 128 x 128 elements, 32 x 32 on the vector engine",
    # vector, scalar and gpsimd engines
    "activation-bias": "gen2 takes a bias vector, and none for reciprocal",
    "activation-range": "the input of an activation is in its range",
    "activation-reduce": "activation reduces with nl.add only",
    "activation-operators": "activate2 scales, shifts, does both in that order, or neither",
    "activation-scale": "a scale vector is float32",
    "affine-pattern": "a pattern has up to 4 [step, number] and all elements of dst",
    "bn-stats-size": "bn_stats takes up to 512 elements per partition",
    "fp32-bounds": "bounds are float32 vectors, and indices below 2**24",
    "gather-index": "indices have the unsigned dtype and layout of the instruction",
    "topk-size": "topk takes 8 to 65535 bfloat16 elements per 16 partitions, for as many or fewer",
    "max8-size": "the vector engine searches 8 to 16384 elements for 8 values",
    "reduce-axes": "tensor_reduce takes the last free axes",
    "scalar-engine-op": "the scalar engine multiplies, adds, or does both in that order",
    # several cores
    "core-deadlock": "cores meet at the same barrier or exchange",
    "core-pair": "barriers and exchanges are for two cores, ranks 0 and 1",
    "core-race": "cores that access the same bytes of shared HBM meet at a barrier in between",
    "sendrecv-size": "gpsimd_dma sends up to 1024 bytes per partition (512 of 16 bits, 256 of 8)",
    "shared-tensor": "cores create the same shared tensors",
}


def require(condition: bool, rule: str, message: str) -> None:
    """Raise KernelError for `rule`, at the kernel's line, unless `condition` holds."""
    if not condition:
        assert rule in RULES, rule
        raise KernelError(rule, where(), message)


def where() -> str:
    """The line of the kernel that is running, as "file:number"; "" outside of any."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_HERE):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
