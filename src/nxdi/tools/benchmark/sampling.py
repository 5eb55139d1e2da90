"""benchmark_sampling: generate again and again, with a clock on every token."""

from __future__ import annotations

import copy
import csv
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig

from nxdi.config import serialize
from nxdi.config.keywords import changed_fields
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.generation.hf_adapter import HuggingFaceGenerationAdapter
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.tools.benchmark.page import render_page
from nxdi.tools.benchmark.stages import TARGETS, Report, RunTimes, Stage, Workload
from nxdi.tools.machine import machine_facts

REPORT_PATH = "benchmark_report.json"
# Options in every report; others are named where they are not the default.
_ALWAYS_NAMED = ("torch_dtype", "tp_degree", "batch_size", "seq_len", "max_context_length")


def benchmark_sampling(
    model: NeuronBaseForCausalLM | HuggingFaceGenerationAdapter,
    draft_model: object = None,
    generation_config: GenerationConfig | None = None,
    target: str | None = "all",
    num_runs: int = 20,
    benchmark_report_path: str | PathLike[str] | None = REPORT_PATH,
) -> dict[str, dict[str, float]]:
    """Measure a loaded model on random prompts of the longest length that leaves room to answer.

    generation_config: how to sample, and how many tokens (default: greedy, and what the model was
    compiled for). target: all, e2e, context_encode or token_gen.
    benchmark_report_path: where the JSON goes; a CSV and an HTML page are written beside it. None:
    nothing is written.
    Returns: the figures of each stage under NxDI's names; see `Report.figures`.
    Raises: ConfigError for an unknown target or fewer than one run; UnsupportedError for a draft
    model.
    """
    if draft_model is not None:
        raise UnsupportedError(
            "benchmark_sampling(draft_model=...) is not supported, it measures one model; leave it "
            "out, and use measure_speculation of nxdi.tools.benchmark.speculation"
        )
    if benchmark_report_path is not None:
        report_files(benchmark_report_path)
    workload = default_workload(model.neuron_config, generation_config)
    report = measure(model, workload, generation_config, target or "all", num_runs)
    if benchmark_report_path is not None:
        write_report(report, benchmark_report_path)
    return {stage.value: report.figures(stage) for stage in report.stages}


def default_workload(
    neuron_config: Any, generation_config: GenerationConfig | None = None
) -> Workload:
    """As many new tokens as asked for, else as compiled for, else half of the sequence."""
    new_tokens = getattr(generation_config, "max_new_tokens", None)
    new_tokens = new_tokens or neuron_config.max_new_tokens or neuron_config.max_length // 2 or 1
    room = max(1, neuron_config.max_length - new_tokens)
    return Workload(
        min(room, neuron_config.max_context_length), new_tokens, neuron_config.tkg_batch_size
    )


def measure(
    model: NeuronBaseForCausalLM | HuggingFaceGenerationAdapter,
    workload: Workload,
    generation_config: GenerationConfig | None = None,
    target: str = "all",
    num_runs: int = 20,
) -> Report:
    """Generate `num_runs` times, and once before that does not count.

    Raises: ConfigError for an unknown target, fewer than one run, or a workload without what the
    target measures; BucketError if the workload does not fit the graphs.
    """
    if num_runs < 1:
        raise ConfigError(f"num_runs={num_runs} measures nothing; use 1 or more")
    workload = fit_to_target(workload, target)
    app = model.neuron_model if isinstance(model, HuggingFaceGenerationAdapter) else model
    once = _Generation(app, workload, generation_config)
    once.run()
    runs = tqdm(range(num_runs), "benchmark", unit="run", disable=None)
    times = tuple(once.run() for _ in runs)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Report(TARGETS[target], workload, times, _config_facts(app, once), machine_facts(), now)


def fit_to_target(workload: Workload, target: str) -> Workload:
    """The part of a workload that a target measures: of a prefill alone, one new token.

    Raises: ConfigError for an unknown target, or a workload without what it measures.
    """
    if target not in TARGETS:
        raise ConfigError(f"target={target!r} is not one of {', '.join(TARGETS)}")
    if target == "context_encode":
        return replace(workload, new_tokens=1)
    if Stage.DECODE in TARGETS[target] and workload.new_tokens < 2:
        raise ConfigError(
            f"new_tokens={workload.new_tokens} leaves no decode step to measure; ask for 2 or "
            "more, or for target='context_encode'"
        )
    return workload


class _Clock:
    """A streamer that notes when each token came; generate() gives it the prompt first."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def put(self, value: Tensor) -> None:
        self.stamps.append(time.perf_counter())

    def end(self) -> None:
        pass


class _Generation:
    """One workload on one model, ready to run."""

    def __init__(
        self,
        app: NeuronBaseForCausalLM,
        workload: Workload,
        generation_config: GenerationConfig | None,
    ) -> None:
        self._adapter = HuggingFaceGenerationAdapter(app)
        make_config: Any = GenerationConfig  # its constructor has no types
        options = copy.deepcopy(generation_config) or make_config(do_sample=False)
        # No row may stop early, nor the folder's defaults bring the tokens at which rows stop.
        self._adapter.generation_config = make_config()
        options.eos_token_id, options.pad_token_id = None, 0
        options.max_new_tokens, options.max_length = workload.new_tokens, None
        self.options = options
        shape = (workload.num_rows, workload.prompt_len)
        generator = torch.Generator().manual_seed(0)
        self._ids = torch.randint(app.config.vocab_size, shape, generator=generator)

    def run(self) -> RunTimes:
        clock = _Clock()
        start = time.perf_counter()
        self._adapter.generate(
            self._ids,
            generation_config=self.options,
            attention_mask=torch.ones_like(self._ids),
            streamer=clock,
        )
        total = time.perf_counter() - start
        stamps = clock.stamps[1:]
        assert len(stamps) == self.options.max_new_tokens
        later = tuple(b - a for a, b in pairwise(stamps))
        return RunTimes(total, stamps[0] - start, later)


def _config_facts(app: NeuronBaseForCausalLM, once: _Generation) -> dict[str, str]:
    config = app.neuron_config
    names = dict.fromkeys([*_ALWAYS_NAMED, *(f.name for f in changed_fields(config))])
    return {
        "model": app.model_path.name,
        "architecture": type(app).__name__,
        "backend": app.backend.name,
        "decoding": "sampling" if once.options.do_sample else "greedy",
        **{name: str(serialize.encode(getattr(config, name), name)) for name in names},
    }


def report_files(path: str | PathLike[str]) -> list[Path]:
    """Where a report goes: the JSON to `path`, the CSV and the HTML page beside it.

    Raises: ConfigError if two of them would have the same name, or `path` is a folder.
    """
    if Path(path).is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it, such as {REPORT_PATH}")
    files = [Path(path).with_suffix(suffix) for suffix in (Path(path).suffix, ".csv", ".html")]
    if len(set(files)) < len(files):
        raise ConfigError(
            f"{path} is where the CSV or the HTML page goes; give the JSON a name such as "
            f"{Path(path).with_suffix('.json').name}"
        )
    return files


def write_report(report: Report, path: str | PathLike[str]) -> list[Path]:
    """Write the report as JSON to `path`, and as CSV and an HTML page beside it.

    Returns: the three files.
    """
    files = report_files(path)
    files[0].parent.mkdir(parents=True, exist_ok=True)
    texts = (json.dumps(report.to_dict(), indent=1) + "\n", _csv(report), render_page(report))
    for file, text in zip(files, texts, strict=True):
        file.write_text(text, encoding="utf-8")
    return files


def _csv(report: Report) -> str:
    """One line for each stage."""
    rows = [{"stage": stage.value, **report.figures(stage)} for stage in report.stages]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_columns(rows)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _columns(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield from dict.fromkeys(name for row in rows for name in row)
