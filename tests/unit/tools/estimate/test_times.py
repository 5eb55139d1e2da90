from __future__ import annotations

from collections import Counter
from dataclasses import fields

import pytest
import torch

from nxdi.tools.estimate.hardware import find_hardware
from nxdi.tools.estimate.times import Efficiency, Times, predict
from nxdi.tools.estimate.work import Collective, Work
from nxdi.types import Phase

HARDWARE = find_hardware("inf2")
PEAK = Efficiency(1.0, 1.0, 1.0, decode_product_us=2.0, prefill_product_us=3.0)


def times(work: Work, phase: Phase = Phase.DECODE) -> Times:
    return predict(work, phase, HARDWARE, torch.bfloat16, PEAK)


@pytest.mark.parametrize(
    ("work", "bound", "seconds"),
    [
        (Work(weight_flops=10**12, attention_flops=10**12), "compute", 2e12 / (65536 * 1.4e9)),
        (Work(weight_bytes=410, cache_bytes=820, written_bytes=820), "memory", 5e-9),
        (Work(num_products=5), "launch", 10e-6),
        (
            Work(collectives=Counter({Collective("all_reduce", 412 * 10**6, 2): 3})),
            "collectives",
            3 * (4e-3 + 15e-6),
        ),
    ],
)
def test_one_kind_of_work_takes_all_the_time(work: Work, bound: str, seconds: float) -> None:
    found = times(work)
    assert found.bound == bound
    assert found.total == getattr(found, bound) == pytest.approx(seconds)


def test_shares_of_the_peaks_and_the_phase_count() -> None:
    work = Work(weight_flops=10**9, weight_bytes=10**9, cache_bytes=10**9, num_products=10)
    half = Efficiency(0.5, 0.5, 0.25, 2.0, 3.0)
    slow = predict(work, Phase.DECODE, HARDWARE, torch.bfloat16, half)
    assert slow.compute == 2 * times(work).compute
    assert slow.memory == pytest.approx((2 + 4) / 2 * times(work).memory)
    assert times(work, Phase.PREFILL).launch == pytest.approx(30e-6)
    assert times(work, Phase.VERIFY).launch == pytest.approx(20e-6)


def test_times_add_up_and_scale() -> None:
    one = Times(compute=1.0, memory=2.0, draft=3.0)
    assert (one + Times(memory=4.0)).bound == "memory"
    assert one.scaled(0.5) == Times(compute=0.5, memory=1.0, draft=1.5)
    assert one.total == 6.0


def test_every_constant_has_a_source() -> None:
    assert Efficiency.sources().keys() == {item.name for item in fields(Efficiency)}
    assert all("inf2" in source for source in Efficiency.sources().values())
