"""Random numbers: a generator per partition of the vector engine and of GpSimd.

The generator is XORWOW, whose state of six words NKI gives out; the vector engine has four of them.
How the device seeds them, and so its numbers, is not documented.
Source: Marsaglia, Xorshift RNGs (2003).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nxdi.kernels.sim import cost
from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.dtypes import Array
from nxdi.kernels.sim.enums import engine as Engine
from nxdi.kernels.sim.isa.common import not_gpsimd_psum, on_chip, same_shape, since, vector
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.values import operand, raw_rows, rows, write, write_raw

_WORDS = {Engine.gpsimd: 6, Engine.vector: 24}
_COUNTER_STEP = np.uint32(362437)


def rng(dst: NkiTensor, engine: Engine = Engine.vector, name: str | None = None) -> None:
    """Random bits in every element of an integer tile."""
    core = current()
    on_chip(dst)
    require(dst.dtype.is_integer, "random-dtype", f"{dst} must have an integer dtype")
    not_gpsimd_psum(engine, dst)
    on = core.choose(engine, Engine.vector, Engine.gpsimd)
    if core.issue("rng", on, [], [dst], cost.elementwise(core.machine, on, [dst])):
        write_raw(dst, _draw(on, dst).astype(f"u{dst.dtype.itemsize}").view(dst.dtype.carrier))


def rand2(
    dst: NkiTensor, min: float | NkiTensor, max: float | NkiTensor, name: str | None = None
) -> None:
    """Uniform numbers from `min` to `max`."""
    core = current()
    since(4, "rand2")
    on_chip(dst)
    vector(min, dst)
    vector(max, dst)
    work = cost.elementwise(core.machine, Engine.vector, [dst])
    if core.issue("rand2", Engine.vector, [min, max], [dst], work):
        low, high = operand(min), operand(max)
        write(dst, low + _uniform(Engine.vector, dst) * (high - low))


def fill_uniform(dst: NkiTensor) -> None:
    """Uniform numbers in [0, 1), on every generation: `nl.rand`."""
    core = current()
    work = cost.elementwise(core.machine, Engine.vector, [dst])
    if core.issue("rand", Engine.vector, [], [dst], work):
        write(dst, _uniform(Engine.vector, dst))


def dropout(
    dst: NkiTensor, data: NkiTensor, prob: float | NkiTensor, name: str | None = None
) -> None:
    """`dst = data`, but 0 with probability `prob`; the rest is not scaled."""
    core = current()
    same_shape(dst, data)
    vector(prob, data)
    work = cost.elementwise(core.machine, Engine.vector, [dst, data])
    if core.issue("dropout", Engine.vector, [data, prob], [dst], work):
        kept = _uniform(Engine.vector, dst) >= operand(prob)
        write(dst, np.where(kept, rows(data), np.float32(0)))


def set_rng_seed(src_seeds: NkiTensor, name: str | None = None) -> None:
    """Seed the vector engine with one number."""
    core = current()
    on_chip(src_seeds)
    require(
        src_seeds.size == 1 and src_seeds.dtype.itemsize == 4,
        "random-state",
        f"{src_seeds} must be one number of 32 bits",
    )
    work = cost.cycles(core.machine, Engine.vector, 1)
    if core.issue("set_rng_seed", Engine.vector, [src_seeds], [], work):
        core.random_states[Engine.vector] = _seeded(
            Engine.vector, int(raw_rows(src_seeds).view(np.uint32)[0, 0])
        )


def rand_set_state(
    src_seeds: NkiTensor, engine: Engine = Engine.gpsimd, name: str | None = None
) -> None:
    """Set the state of the generators of the tile's partitions."""
    core = current()
    on = _check_state(src_seeds, engine)
    work = cost.elementwise(core.machine, on, [src_seeds])
    if core.issue("rand_set_state", on, [src_seeds], [], work):
        _state(on)[_lanes(src_seeds)] = raw_rows(src_seeds)


def rand_get_state(dst: NkiTensor, engine: Engine = Engine.gpsimd, name: str | None = None) -> None:
    """The state of the generators of the tile's partitions."""
    core = current()
    on = _check_state(dst, engine)
    if core.issue("rand_get_state", on, [], [dst], cost.elementwise(core.machine, on, [dst])):
        write_raw(dst, _state(on)[_lanes(dst)])


def _check_state(tensor: NkiTensor, engine: Engine) -> Engine:
    since(3, "the state of random numbers")
    on_chip(tensor)
    core = current()
    engines = [Engine.gpsimd] if core.machine.generation == 3 else [Engine.gpsimd, Engine.vector]
    on = core.choose(Engine.gpsimd if engine is Engine.unknown else engine, *engines)
    not_gpsimd_psum(on, tensor)
    require(
        tensor.dtype.name == "uint32" and tensor.free_size == _WORDS[on],
        "random-state",
        f"the state of {on} is uint32 with {_WORDS[on]} words per partition, not {tensor}",
    )
    return on


def _seeded(on: Engine, seed: int) -> Array:
    shape = current().machine.partitions, _WORDS[on]
    return np.random.default_rng(seed).integers(1, 1 << 32, shape, np.uint32)


def _state(on: Engine) -> Array:
    states: dict[Engine, Any] = current().random_states
    if on not in states:
        states[on] = _seeded(on, 0)
    found: Array = states[on]
    return found


def _lanes(tensor: NkiTensor) -> slice:
    """The partitions that a tile is in."""
    return slice(tensor.start_partition, tensor.start_partition + tensor.shape[0])


def _draw(on: Engine, like: NkiTensor) -> Array:
    """Uint32 for every element; the generators of a partition take turns."""
    state = _state(on)[_lanes(like)].reshape(like.shape[0], -1, 6)
    steps = -(-like.free_size // state.shape[1])
    return np.concatenate([_step(state) for _ in range(steps)], axis=1)[:, : like.free_size]


def _step(state: Array) -> Array:
    """One number of each generator, whose words move on."""
    first, last = state[..., 0], state[..., 4]
    mixed = first ^ (first >> np.uint32(2))
    new = last ^ (last << np.uint32(4)) ^ mixed ^ (mixed << np.uint32(1))
    state[..., :4] = state[..., 1:5].copy()
    state[..., 4] = new
    state[..., 5] += _COUNTER_STEP
    number: Array = new + state[..., 5]
    return number


def _uniform(on: Engine, like: NkiTensor) -> Array:
    """Float32 in [0, 1) for every element."""
    return (_draw(on, like) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
