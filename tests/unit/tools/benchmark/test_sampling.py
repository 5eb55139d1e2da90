from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig

from nxdi.errors import BucketError, ConfigError, UnsupportedError
from nxdi.generation.hf_adapter import HuggingFaceGenerationAdapter
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.tools.benchmark import Workload, measure, write_report
from nxdi.tools.benchmark.sampling import default_workload
from nxdi.utils.benchmark import benchmark_sampling
from tiny_models import load_app

STAGES = ["e2e_model", "context_encoding_model", "token_generation_model"]


def test_all_stages_under_the_names_of_nxdi(loaded: NeuronBaseForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.json"
    figures = benchmark_sampling(loaded, num_runs=2, benchmark_report_path=path)
    assert list(figures) == STAGES
    for values in figures.values():
        assert 0 < values["latency_ms_p50"] <= values["latency_ms_p100"]
        assert values["throughput"] > 0
    written = json.loads(path.read_text())
    assert {name: written[name] for name in STAGES} == figures
    assert written["workload"] == {
        "prompt_len": 16,
        "new_tokens": 16,
        "num_rows": 2,
        "num_runs": 2,
    }
    assert written["config"]["architecture"] == "NeuronLlamaForCausalLM"
    assert written["config"]["seq_len"] == "32"
    assert written["machine"]["torch"]


def test_the_three_files(loaded: NeuronBaseForCausalLM, tmp_path: Path) -> None:
    report = measure(loaded, Workload(4, 3, 1), num_runs=2)
    files = write_report(report, tmp_path / "r.json")
    assert [file.name for file in files] == ["r.json", "r.csv", "r.html"]
    with open(files[1], newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["stage"] for row in rows] == STAGES
    expected = report.figures(report.stages[0])["latency_ms_p90"]
    assert float(rows[0]["latency_ms_p90"]) == expected
    assert "<svg" in files[2].read_text()


@pytest.mark.parametrize("name", ["r.csv", "r.html"])
def test_a_name_that_two_files_would_have(
    name: str, loaded: NeuronBaseForCausalLM, tmp_path: Path
) -> None:
    report = measure(loaded, Workload(4, 2, 1), num_runs=1)
    with pytest.raises(ConfigError, match=r"such as r\.json"):
        write_report(report, tmp_path / name)


def test_each_token_has_a_time(loaded: NeuronBaseForCausalLM) -> None:
    report = measure(loaded, Workload(5, 7, 2), num_runs=3)
    assert [len(run.later) for run in report.runs] == [6, 6, 6]
    for run in report.runs:
        assert 0 < run.first < run.total
        assert run.first + sum(run.later) <= run.total


@pytest.mark.parametrize(
    ("target", "stages"),
    [
        ("e2e", STAGES[:1]),
        ("context_encode", STAGES[1:2]),
        ("token_gen", STAGES[2:]),
        (None, STAGES),
    ],
)
def test_targets(target: str | None, stages: list[str], loaded: NeuronBaseForCausalLM) -> None:
    figures = benchmark_sampling(loaded, target=target, num_runs=1, benchmark_report_path=None)
    assert list(figures) == stages


def test_a_prefill_alone_generates_one_token(loaded: NeuronBaseForCausalLM) -> None:
    report = measure(loaded, Workload(5, 9, 1), target="context_encode", num_runs=1)
    assert report.workload.new_tokens == 1
    assert report.runs[0].later == ()


def test_no_row_stops_early(folder: Path) -> None:
    # Every token ends a text, says the folder.
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": list(range(97)), "pad_token_id": 0})
    )
    model = load_app(folder, seq_len=16, max_context_length=8)
    report = measure(model, Workload(4, 8, 1), num_runs=1)
    assert len(report.runs[0].later) == 7


def test_the_generation_config_is_used_and_left_alone(loaded: NeuronBaseForCausalLM) -> None:
    make: Any = GenerationConfig
    config = make(max_new_tokens=3, do_sample=True, eos_token_id=5)
    figures = benchmark_sampling(loaded, None, config, num_runs=1, benchmark_report_path=None)
    assert list(figures) == STAGES
    assert (config.max_new_tokens, config.eos_token_id) == (3, 5)
    assert default_workload(loaded.neuron_config, config).new_tokens == 3
    report = measure(loaded, Workload(4, 3, 1), config, num_runs=1)
    assert report.config["decoding"] == "sampling"


def test_an_adapter_is_measured_as_its_model(loaded: NeuronBaseForCausalLM) -> None:
    adapter = HuggingFaceGenerationAdapter(loaded)
    assert benchmark_sampling(adapter, num_runs=1, benchmark_report_path=None)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((128, 128, None), (64, 64)),  # no option says how many tokens are new
        ((128, 64, 64), (64, 64)),
        ((128, 100, 28), (100, 28)),
        ((2, 2, None), (1, 1)),
        ((1, 1, None), (1, 1)),
    ],
)
def test_the_default_workload_fits(
    lengths: tuple[int, int, int | None], expected: tuple[int, int]
) -> None:
    names = ("max_length", "max_context_length", "max_new_tokens")
    config = SimpleNamespace(**dict(zip(names, lengths, strict=True)), tkg_batch_size=3)
    assert default_workload(config) == Workload(*expected, 3)


def test_refusals(loaded: NeuronBaseForCausalLM) -> None:
    with pytest.raises(UnsupportedError, match="draft_model"):
        benchmark_sampling(loaded, draft_model=loaded)
    with pytest.raises(ConfigError, match="target='speculation'"):
        benchmark_sampling(loaded, target="speculation")
    with pytest.raises(ConfigError, match="num_runs=0"):
        benchmark_sampling(loaded, num_runs=0)
    with pytest.raises(ConfigError, match="new_tokens=1"):
        measure(loaded, Workload(4, 1, 1))
    with pytest.raises(BucketError):
        measure(loaded, Workload(20, 30, 1))


def test_a_model_must_be_loaded(saved: Path) -> None:
    from tiny_models import make_app

    with pytest.raises(ConfigError, match="not loaded"):
        benchmark_sampling(make_app(saved, seq_len=16), num_runs=1)
