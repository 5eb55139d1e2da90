"""Predictions for our MLP kernels against public targets of nki-library's, on unseen cases."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from nxdi.kernels.sim.machine import machine_of

SOURCE = Path(__file__).parents[4] / "benchmarks" / "nki_calibration.py"


@pytest.fixture
def calibration(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("nki_calibration", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "nki_calibration", module)
    spec.loader.exec_module(module)
    return module


def test_short_unseen_cases_are_predicted(calibration: ModuleType) -> None:
    cases = [case for case in calibration.read_cases() if case.is_unseen]
    short = [case for case in cases if case.rows * case.hidden <= 2**20]
    assert len(short) == 9
    simulations = [calibration.run(case) for case in short]
    machine = machine_of("trn2")

    def pairs(machine: object) -> list[tuple[float, float]]:
        times = [calibration.predict(simulation, machine) for simulation in simulations]
        return [(time, case.target_us) for time, case in zip(times, short, strict=True)]

    assert calibration.median_error(pairs(machine)) <= 0.15
    assert calibration.rank_correlation(pairs(machine)) >= 0.9
    # The constant that was fitted matters.
    assert calibration.median_error(pairs(replace(machine, launch_ns=0))) > 0.15


@pytest.mark.slow
def test_unseen_cases_are_predicted(calibration: ModuleType) -> None:
    cases = calibration.read_cases()
    assert len(cases) == 43
    machine = machine_of("trn2")
    times = [calibration.predict(calibration.run(case), machine) for case in cases]
    pairs = calibration.pairs_of(cases, times, [True])
    assert len(pairs) == 14
    assert calibration.median_error(pairs) <= 0.08
    assert calibration.rank_correlation(pairs) >= 0.99
    # Those that the constants were fitted on are no better.
    assert calibration.median_error(calibration.pairs_of(cases, times, [False])) <= 0.13


def test_ranks(calibration: ModuleType) -> None:
    assert calibration.rank_correlation([(1.0, 10.0), (2.0, 30.0), (5.0, 40.0)]) == 1.0
    assert calibration.rank_correlation([(3.0, 10.0), (2.0, 30.0), (1.0, 40.0)]) == -1.0
