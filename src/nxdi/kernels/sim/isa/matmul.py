"""The tensor engine: matrix products and transposes."""

from __future__ import annotations

import numpy as np

from nxdi.kernels.sim import cost
from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.dtypes import Array
from nxdi.kernels.sim.enums import engine as Engine
from nxdi.kernels.sim.enums import matmul_perf_mode as Perf
from nxdi.kernels.sim.isa.common import PSUM, SBUF, on_chip, same_dtype, since
from nxdi.kernels.sim.memory import WRITTEN, WRITTEN_BY_MATMUL
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.validity import mark_writer, writers_of
from nxdi.kernels.sim.values import numbers, raw_rows, rows, write, write_raw

_LONG = ("float32", "tfloat32")


def nc_matmul(  # noqa: PLR0913  # the signature of NKI
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    tile_position: tuple[int, ...] = (),
    tile_size: tuple[int, ...] = (),
    perf_mode: Perf = Perf.none,
    name: str | None = None,
) -> None:
    """`dst[M, N] (+)= stationary[K, M].T @ moving[K, N]`, summed in float32."""
    core = current()
    is_double = perf_mode is Perf.double_row
    _check_buffers(dst, stationary, moving)
    _check_dtypes(dst, stationary, moving, is_transpose)
    if is_double:
        _check_double_row(stationary, moving, tile_size)
    _check_tiling(stationary, moving, tile_position, tile_size, is_double)
    _check_sizes(dst, stationary, moving, is_double)
    adds = accumulates(dst, accumulate)
    passes = _passes(stationary, moving, is_stationary_onezero or is_moving_onezero)
    columns, width = dst.shape[0], dst.free_size
    contraction = stationary.shape[0] * (2 if is_double else 1)
    flops = 2 * contraction * columns * width
    work = cost.matmul(core.machine, columns, width, passes, flops)
    reads = [stationary, moving, dst] if adds else [stationary, moving]
    computes = core.issue("nc_matmul", Engine.tensor, reads, [dst], work)
    note_result(dst)
    if computes:
        _multiply(dst, stationary, moving, adds, is_double)


def _multiply(
    dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor, adds: bool, is_double: bool
) -> None:
    left, right = _operand(stationary, is_double), _operand(moving, is_double)
    product = left.T @ right
    if adds:
        product += rows(dst)
    write(dst, product)


def _operand(tensor: NkiTensor, is_double: bool) -> Array:
    """Float32 [K, free]; with double rows, [K, 2, free] becomes [2 K, free]."""
    if is_double:
        values = numbers(tensor)
        return values.reshape(values.shape[0] * 2, -1)
    return rows(tensor)


def _check_buffers(dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor) -> None:
    require(
        dst.buffer is PSUM and stationary.buffer is SBUF and moving.buffer is SBUF,
        "matmul-buffers",
        f"{dst} from {stationary} and {moving}: operands must be in SBUF and dst in PSUM",
    )


def _check_dtypes(
    dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor, is_transpose: bool
) -> None:
    machine = current().machine
    allowed = ("float32", "bfloat16") if machine.generation >= 4 else ("float32",)
    is_result = dst.dtype.name in allowed or (is_transpose and dst.dtype is moving.dtype)
    require(
        is_result, "matmul-dst-dtype", f"{dst} must be {' or '.join(allowed)} on {machine.name}"
    )
    names = [stationary.dtype.name, moving.dtype.name]
    is_long = [name in _LONG for name in names]
    is_fn = [name == "float8_e4m3fn" for name in names]
    is_ok = (
        stationary.dtype.is_float
        and moving.dtype.is_float
        and is_long[0] == is_long[1]
        and not (any(is_fn) and machine.generation < 4)
        and not (any(is_fn) and "float8_e4m3" in names)
    )
    require(
        is_ok,
        "matmul-dtypes",
        f"{names[0]} cannot be multiplied with {names[1]} on {machine.name}; cast one of them",
    )


def _check_double_row(stationary: NkiTensor, moving: NkiTensor, tile_size: tuple[int, ...]) -> None:
    since(3, "double_row")
    for tensor in (stationary, moving):
        require(
            tensor.dtype.is_float8 and tensor.ndim == 3 and tensor.shape[1] == 2,
            "double-row",
            f"double_row needs float8 [K, 2, N], not {tensor}",
        )
    require(
        not tile_size or tile_size[1] == 128, "double-row", f"{tile_size} tiles the columns as well"
    )


def _check_tiling(
    stationary: NkiTensor,
    moving: NkiTensor,
    position: tuple[int, ...],
    size: tuple[int, ...],
    is_double: bool,
) -> None:
    """Tiles of the array, and what the operands may then have."""
    machine = current().machine
    sizes = [n for n in (32, 64, 128) if n >= machine.pe_tile_min]
    limits = tuple(size) or (128, 128)
    require(
        bool(position) == bool(size) and all(n in sizes for n in limits),
        "pe-tile-size",
        f"tile_size={size}, tile_position={position}: give both; sizes are {sizes}",
    )
    for at, n in zip(position, limits, strict=False):
        require(
            at % n == 0 and at >= 0 and at + n <= 128,
            "pe-tile-position",
            f"tile_position={position} is not a multiple of tile_size={size} within 128",
        )
    require(
        stationary.shape[0] == moving.shape[0] <= limits[0],
        "matmul-contraction",
        f"{stationary} and {moving} must have the same partitions, at most {limits[0]}",
    )
    columns = stationary.free_size // (2 if is_double else 1)
    require(
        columns <= limits[1],
        "matmul-stationary",
        f"{stationary} has {columns} columns, more than {limits[1]}; split it",
    )


def _check_sizes(dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor, is_double: bool) -> None:
    machine = current().machine
    parts = 2 if is_double else 1
    columns, width = stationary.free_size // parts, moving.free_size // parts
    most = machine.moving_max * (2 if dst.dtype.itemsize == 2 and machine.generation >= 4 else 1)
    require(
        width <= most, "matmul-moving", f"{moving} has {width} columns, more than {most}; split it"
    )
    require(
        (dst.shape[0], dst.free_size) == (columns, width),
        "matmul-dst-shape",
        f"{dst} must have shape [{columns}, {width}]",
    )
    _, _, first, last = dst.region()
    if machine.generation < 4:
        bank = machine.psum_bank_bytes
        require(
            first // bank == (last - 1) // bank,
            "matmul-bank",
            f"bytes {first}..{last} of {dst} are in several banks of {bank} bytes",
        )


def accumulates(dst: NkiTensor, accumulate: bool | None) -> bool:
    """Whether the product is added to what `dst` holds."""
    writers = writers_of(dst)
    if accumulate is None:
        return writers == {WRITTEN_BY_MATMUL}
    is_defined = current().machine.generation >= 4 and WRITTEN in writers and 0 not in writers
    require(
        not accumulate or writers == {WRITTEN_BY_MATMUL} or is_defined,
        "accumulate-unwritten",
        f"accumulate=True on {dst}, which {'another engine' if WRITTEN in writers else 'no matmul'}"
        " has written; begin with accumulate=False",
    )
    return accumulate


def note_result(dst: NkiTensor) -> None:
    """`dst` holds a product, and is an open accumulation group until it is read."""
    core = current()
    mark_writer(dst, WRITTEN_BY_MATMUL)
    storage = dst.storage
    storage.is_accumulating = True
    core.accumulating.add(storage)
    bank = core.machine.psum_bank_bytes
    banks = 0
    for other in list(core.accumulating):
        if not other.is_accumulating:
            core.accumulating.discard(other)
            continue
        banks += -(-other.allocation.row_bytes // bank)
    require(
        banks <= core.machine.psum_banks,
        "psum-open-groups",
        f"accumulation groups are open in {banks} banks of {core.machine.psum_banks}; "
        "read results out before you begin more",
    )


def _passes(stationary: NkiTensor, moving: NkiTensor, is_onezero: bool) -> float:
    machine = current().machine
    if "float32" not in (stationary.dtype.name, moving.dtype.name):
        return 1.0
    return machine.fp32_passes / 2 if is_onezero else float(machine.fp32_passes)


def nc_transpose(
    dst: NkiTensor, data: NkiTensor, engine: Engine = Engine.unknown, name: str | None = None
) -> None:
    """`dst = data.T`: up to 128 x 128 to PSUM, or 32 x 32 on the vector engine."""
    core = current()
    on_chip(dst, data)
    same_dtype(dst, data)
    partitions, width = data.shape[0], data.free_size
    is_small = max(partitions, width) <= 32
    prefers_vector = is_small and not (dst.buffer is PSUM and data.buffer is SBUF)
    on = engine
    if engine is Engine.unknown:
        on = Engine.vector if prefers_vector else Engine.tensor
    on = core.choose(on, Engine.tensor, Engine.vector)
    most = 32 if on is Engine.vector else 128
    require(
        max(partitions, width) <= most and (dst.shape[0], dst.free_size) == (width, partitions),
        "transpose-size",
        f"{dst} from {data}: {on} transposes up to {most} x {most}, dst [{width}, {partitions}]",
    )
    if on is Engine.tensor:
        _check_buffers(dst, data, data)
        number: float = max(partitions, min(64, width))
        if data.dtype.itemsize == 4:
            number *= core.machine.fp32_passes / core.machine.fp32_transpose_rate
        work = cost.cycles(core.machine, on, number)
    else:
        work = cost.elementwise(core.machine, on, [dst, data])
    computes = core.issue("nc_transpose", on, [data], [dst], work)
    mark_writer(dst, WRITTEN_BY_MATMUL if on is Engine.tensor else WRITTEN)
    if computes:
        _transpose(dst, data, on)


def _transpose(dst: NkiTensor, data: NkiTensor, on: Engine) -> None:
    values = raw_rows(data)
    is_exact = on is Engine.vector or current().machine.generation >= 3
    if not is_exact and not np.isfinite(rows(data)).all():
        # A product with the identity spreads NaN over its row and column.
        write(dst, rows(data).T @ np.eye(values.shape[0], dtype=np.float32))
        return
    write_raw(dst, np.ascontiguousarray(values.T))
