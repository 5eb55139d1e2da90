from __future__ import annotations

import pytest

from nxdi.tools.benchmark.stages import Report, RunTimes, Stage, Workload, summarise

RUNS = (RunTimes(1.0, 0.4, (0.1, 0.2)), RunTimes(3.0, 0.6, (0.3, 0.4)))
REPORT = Report(tuple(Stage), Workload(10, 3, 2), RUNS, {}, {}, "now")


def test_percentiles_are_linear_between_neighbours() -> None:
    found = summarise([float(n) for n in range(101)])
    assert found["latency_ms_p50"] == 50
    assert found["latency_ms_p90"] == 90
    assert found["latency_ms_p95"] == 95
    assert found["latency_ms_p99"] == 99
    assert found["latency_ms_p100"] == 100
    assert found["latency_ms_avg"] == 50
    assert summarise([1.0, 2.0])["latency_ms_p50"] == 1.5


def test_latencies_of_each_stage() -> None:
    assert REPORT.latencies_ms(Stage.E2E) == pytest.approx([1000, 3000])
    assert REPORT.latencies_ms(Stage.PREFILL) == pytest.approx([400, 600])
    assert REPORT.latencies_ms(Stage.DECODE) == pytest.approx([100, 200, 300, 400])


def test_only_generated_tokens_count_as_throughput() -> None:
    # Two rows; three tokens each in 2 s on average, one in 0.5 s of prefill, one in 0.25 s.
    assert REPORT.figures(Stage.E2E)["throughput"] == pytest.approx(2 * 3 / 2)
    assert REPORT.figures(Stage.PREFILL)["throughput"] == pytest.approx(2 / 0.5)
    assert REPORT.figures(Stage.DECODE)["throughput"] == pytest.approx(2 / 0.25)


def test_prompt_tokens_are_counted_apart() -> None:
    figures = REPORT.figures(Stage.PREFILL)
    assert figures["prompt_tokens_per_second"] == pytest.approx(2 * 10 / 0.5)
    assert "prompt_tokens_per_second" not in REPORT.figures(Stage.E2E)


def test_the_data_holds_figures_and_what_they_rest_on() -> None:
    data = REPORT.to_dict()
    assert data["e2e_model"] == REPORT.figures(Stage.E2E)
    assert data["workload"] == {"prompt_len": 10, "new_tokens": 3, "num_rows": 2, "num_runs": 2}
    assert data["runs_ms"][1]["token_generation_model"] == pytest.approx([300, 400])
