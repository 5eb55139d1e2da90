"""Times that the documentation works out, and the schedule they make."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from nxdi.kernels import simulate
from nxdi.kernels.sim.machine import MACHINES, machine_of, sources
from nxdi.kernels.sim.schedule import schedule
from sim_kernels import filled, nisa, nl, random_array, stored


def work(kernel: Any, op: str, *arrays: Any, target: str = "gen3") -> Any:
    """What one instruction of a kernel costs."""
    simulation = simulate(kernel, target=target)
    simulation(*arrays)
    (found,) = [item for item in simulation.traces[0].instructions if item.op == op]
    return found.work


def product(dtype: str) -> Any:
    def kernel() -> None:
        one, other = filled(128, 128, dtype=dtype), filled(128, 512, dtype=dtype)
        nisa.nc_matmul(nl.ndarray((128, 512), nl.float32, buffer=nl.psum), one, other)

    return kernel


@pytest.mark.parametrize("target", MACHINES)
def test_a_bf16_matmul_takes_512_cycles(target: str) -> None:
    found = work(product("bfloat16"), "nc_matmul", target=target)
    assert found.ns * machine_of(target).tensor_ghz == pytest.approx(512)


@pytest.mark.parametrize(("target", "tflops"), [("gen2", 91.8), ("gen3", 78.6), ("gen4", 78.6)])
def test_matmuls_back_to_back_reach_the_peak(target: str, tflops: float) -> None:
    found = work(product("bfloat16"), "nc_matmul", target=target)
    assert found.flops / found.ns / 1e3 == pytest.approx(tflops, rel=1e-3)
    assert machine_of(target).peak_tflops == pytest.approx(tflops, rel=1e-3)


def test_a_float32_matmul_takes_four_times_as_long() -> None:
    times = [work(product(name), "nc_matmul").ns for name in ("float32", "bfloat16", "float8_e4m3")]
    assert times[0] == 4 * times[1] == 4 * times[2]


def test_double_row_multiplies_twice_as_much_in_the_same_time() -> None:
    def kernel() -> None:
        one, other = (filled(128, 2, n, dtype=nl.float8_e4m3) for n in (128, 512))
        result = nl.ndarray((128, 512), nl.float32, buffer=nl.psum)
        nisa.nc_matmul(result, one, other, perf_mode=nisa.matmul_perf_mode.double_row)

    found, single = work(kernel, "nc_matmul"), work(product("bfloat16"), "nc_matmul")
    assert (found.ns, found.flops) == (single.ns, 2 * single.flops)


def test_32_kib_on_one_dma_engine_take_1416_ns() -> None:
    def kernel(x: Any) -> None:
        nl.load(x)

    found = work(kernel, "dma_copy", np.zeros((4, 4096), np.float16))
    assert found.queues == 1
    assert found.ns == pytest.approx(1416, rel=0.1)


def test_short_runs_are_slow() -> None:
    def kernel(x: Any) -> None:
        nl.load(x)

    rates = []
    for columns in (64, 128, 1024, 2048, 8192):
        found = work(kernel, "dma_copy", np.zeros((128, columns), np.float16))
        rates.append(found.moved_bytes / found.ns)
    assert rates == sorted(rates)
    assert rates[1] / rates[-1] < 0.4
    assert rates[-1] == pytest.approx(machine_of("gen3").dma_rate)


def test_the_reciprocal_of_the_vector_engine_takes_eight_times_as_long() -> None:
    def kernel() -> None:
        tile = filled(128, 1024)
        nisa.reciprocal(tile, tile)
        nisa.activation(tile, nl.reciprocal, tile)

    vector, scalar = work(kernel, "reciprocal").ns * 0.96, work(kernel, "activation").ns * 1.2
    assert vector == pytest.approx(8 * scalar)


def test_the_vector_engine_copies_short_types_faster_since_gen3() -> None:
    def kernel() -> None:
        tile = filled(128, 1024, dtype=nl.bfloat16)
        nisa.tensor_copy(tile, tile, engine=nisa.engine.vector)

    cycles = [
        work(kernel, "tensor_copy", target=name).ns * machine_of(name).vector_ghz
        for name in ("gen2", "gen3")
    ]
    assert cycles == pytest.approx([1024, 256])


def chain(x: Any) -> Any:
    tile = nl.load(x)
    for _ in range(4):
        tile = nl.square(tile)
    return stored(tile)


def test_dependent_instructions_wait() -> None:
    simulation = simulate(chain)
    simulation(random_array(128, 512))
    (slots,) = schedule(simulation.traces, simulation.machine)
    for slot in slots:
        for number in slot.instruction.after:
            assert slot.start >= slots[number].done
    report = simulation.report()
    assert [step.op for step in report.critical] == ["dma_copy", *["activation"] * 4, "dma_copy"]
    assert report.time_us > 2 * 1.3


def test_independent_loads_overlap_and_engines_are_exclusive() -> None:
    def kernel(x: Any) -> None:
        for _ in range(8):
            nl.square(nl.load(x[0:8, :]))

    simulation = simulate(kernel)
    simulation(random_array(128, 2048))
    (slots,) = schedule(simulation.traces, simulation.machine)
    loads = [slot for slot in slots if slot.instruction.op == "dma_copy"]
    assert max(slot.start for slot in loads) < min(slot.done for slot in loads)
    acts = [slot for slot in slots if slot.instruction.op == "activation"]
    for before, after in pairwise(acts):
        assert after.start >= before.ended


def test_matmuls_sustain_a_share_of_the_peak() -> None:
    def kernel() -> None:
        tiles = [filled(128, n, dtype=nl.bfloat16) for n in (128, 512)]
        for _ in range(4):
            nisa.nc_matmul(nl.ndarray((128, 512), nl.float32, buffer=nl.psum), *tiles)

    simulation = simulate(kernel)
    simulation()
    (slots,) = schedule(simulation.traces, simulation.machine)
    starts = [slot.start for slot in slots if slot.instruction.op == "nc_matmul"]
    cycles = [(b - a) * simulation.machine.tensor_ghz for a, b in pairwise(starts)]
    assert cycles == pytest.approx([512 / simulation.machine.tensor_efficiency] * 3)
    assert 0.5 < simulation.machine.tensor_efficiency < 1


def test_memory_limits_how_far_loads_run_ahead() -> None:
    def kernel(x: Any, number: int) -> None:
        for _ in range(8):
            tile = nl.load(x)
            for _ in range(number):
                nisa.activation(tile, nl.copy, tile)

    simulation = simulate(kernel, numerics="shapes")
    simulation(np.zeros((128, 24000), np.float32), 2)
    (slots,) = schedule(simulation.traces, simulation.machine)
    loads = [slot for slot in slots if slot.instruction.op == "dma_copy"]
    # 96 000 bytes per partition: two fit, the third waits for the first to be used up.
    last_use = slots[2]
    assert loads[2].start >= last_use.done
    assert loads[1].start < last_use.done


def test_a_report_in_three_forms() -> None:
    simulation = simulate(chain)
    simulation(random_array(128, 512))
    report = simulation.report()
    values = json.loads(report.to_json())
    assert values["bound_by"] == report.bound_by == "scalar"
    assert values["hbm_bytes"] == 2 * 128 * 512 * 4
    assert f"{report.time_us:.1f} us on gen3" in str(report)
    page = report.to_html()
    assert page.count("<rect") == report.num_instructions
    assert "test_cost.py" in page


def test_advice_names_what_costs_time() -> None:
    simulation = simulate(product("float32"))
    simulation()
    assert any("float32 matmul" in text for text in simulation.report().advice)
    simulation = simulate(product("bfloat16"))
    simulation()
    assert simulation.report().advice == []


def test_every_number_has_a_source() -> None:
    assert all(sources().values())
    assert sources().keys() == vars(machine_of("gen2")).keys()
