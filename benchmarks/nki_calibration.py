"""Predicted times of our MLP kernels against the latency targets of nki-library's.

    python benchmarks/nki_calibration.py          the table, with the constants of `Machine`
    python benchmarks/nki_calibration.py --fit    how the error depends on the fitted constants

nki_latency_targets.csv has the targets that the tests of aws-neuron/nki-library (Apache-2.0, April
2026) give for its MLP kernels in bfloat16 on trn2. Their unit is not stated; as picoseconds, decode
moves weights at the documented rate of the DMA engines. How close they are to what was measured is
not stated either, and the kernels are not ours: a layer norm is run as an RMSNorm here.

Every third case is unseen: the constants were fitted on the others.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nxdi.kernels import Simulation, simulate
from nxdi.kernels.nki import load_kernels
from nxdi.kernels.sim.machine import Machine, machine_of
from nxdi.kernels.sim.schedule import schedule

TARGETS = Path(__file__).parent / "nki_latency_targets.csv"
ACTIVATIONS = {"SiLU": "silu", "GELU": "gelu_pytorch_tanh"}
EFFICIENCIES = [1.0, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6]
LAUNCHES = range(61)  # microseconds


@dataclass(frozen=True)
class Case:
    """One target: x [rows, hidden], in microseconds."""

    kernel: str
    num_cores: int
    rows: int
    hidden: int
    intermediate: int
    norm: str
    activation: str
    target_us: float
    is_unseen: bool

    def __str__(self) -> str:
        shape = f"{self.rows} x {self.hidden} x {self.intermediate}"
        return f"{self.kernel:12} {self.num_cores}  {shape:19} {self.norm:10}"


def read_cases() -> list[Case]:
    with TARGETS.open(encoding="utf-8") as file:
        return [
            Case(
                row["kernel"],
                int(row["physical_cores"]),
                int(row["batch"]) * int(row["seq_len"]),
                int(row["hidden_size"]),
                int(row["intermediate_size"]),
                row["norm"],
                ACTIVATIONS[row["activation"]],
                int(row["target_as_published"]) / 1e6,
                number % 3 == 2,
            )
            for number, row in enumerate(csv.DictReader(file))
        ]


def run(case: Case) -> Simulation:
    """Our kernel on the case's shapes."""
    kernel = getattr(load_kernels(case.kernel), case.kernel)
    simulation = simulate(kernel[case.num_cores], target="trn2", numerics="shapes")

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16, device="meta")

    wide = (case.hidden, case.intermediate)
    weights = empty(*wide), empty(*wide), empty(*wide[::-1])
    gamma = None if case.norm == "NO_NORM" else empty(1, case.hidden)
    simulation(empty(case.rows, case.hidden), *weights, gamma, activation=case.activation)
    return simulation


def predict(simulation: Simulation, machine: Machine) -> float:
    """Microseconds of a run, with its launch."""
    slots = schedule(simulation.traces, machine)
    return (machine.launch_ns + max(slot.done for core in slots for slot in core)) / 1e3


Pairs = Sequence[tuple[float, float]]  # predicted, target


def median_error(pairs: Pairs) -> float:
    return statistics.median(abs(predicted / target - 1) for predicted, target in pairs)


def rank_correlation(pairs: Pairs) -> float:
    """Spearman's; no two values are equal."""

    def ranks(values: list[float]) -> list[int]:
        ordered = sorted(values)
        return [ordered.index(value) for value in values]

    return statistics.correlation(ranks([p for p, _ in pairs]), ranks([t for _, t in pairs]))


def show(cases: Sequence[Case], predictions: Sequence[float]) -> None:
    print("kernel   cores  tokens x hidden x I     norm          target  predicted   error")
    for case, time in zip(cases, predictions, strict=True):
        error = f"{time / case.target_us - 1:+7.1%}{'  unseen' if case.is_unseen else ''}"
        print(f"{case} {case.target_us:9.1f}  {time:9.1f} {error}")
    for name, unseen in (("fitted", False), ("unseen", True)):
        pairs = pairs_of(cases, predictions, [unseen])
        print(
            f"{name}: {len(pairs)} cases, median error {median_error(pairs):.1%}, "
            f"Spearman {rank_correlation(pairs):.3f}"
        )


def pairs_of(cases: Sequence[Case], times: Sequence[float], unseen: Sequence[bool]) -> Pairs:
    found = zip(cases, times, strict=True)
    return [(time, case.target_us) for case, time in found if case.is_unseen in unseen]


def show_fit(cases: Sequence[Case], simulations: Sequence[Simulation]) -> None:
    """For each rate of the tensor engine, the launch that fits best and the errors.

    What is minimised is the mean of |log(predicted / target)|.
    """
    print("tensor_efficiency  launch us  mean |log|  median error: fitted  unseen")
    for efficiency in EFFICIENCIES:
        machine = replace(machine_of("trn2"), tensor_efficiency=efficiency, launch_ns=0)
        times = [predict(simulation, machine) for simulation in simulations]
        fitted = pairs_of(cases, times, [False])

        def loss(launch: float, pairs: Pairs = fitted) -> float:
            return statistics.mean(abs(math.log((time + launch) / t)) for time, t in pairs)

        launch = min(LAUNCHES, key=loss)
        errors = [
            median_error([(time + launch, t) for time, t in pairs_of(cases, times, [unseen])])
            for unseen in (False, True)
        ]
        print(
            f"{efficiency:17.2f}  {launch:9}  {loss(launch):10.4f}  "
            f"{errors[0]:20.1%}  {errors[1]:6.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fit", action="store_true", help="show errors for other constants")
    is_fit = parser.parse_args().fit
    cases = read_cases()
    simulations = [run(case) for case in cases]
    if is_fit:
        show_fit(cases, simulations)
    else:
        machine = machine_of("trn2")
        show(cases, [predict(simulation, machine) for simulation in simulations])


if __name__ == "__main__":
    main()
