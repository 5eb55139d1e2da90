"""Estimates of whole models: memory against what is really loaded, steps, speculation, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from held_memory import memory, tensors_held
from nxdi.errors import BucketError, ConfigError
from nxdi.tools.benchmark.stages import Workload
from nxdi.tools.estimate import Estimate, Speculation, estimate_model, find_hardware
from nxdi.types import Phase
from tiny_models import COMPILED, load_app, make_app, save_tiny, tiny_hf_model

PAGED: dict[str, Any] = {"is_block_kv_layout": True, "pa_block_size": 8}
INT8: dict[str, Any] = {"quantized": True, "quantization_type": "per_channel_symmetric"}
ANSWER = Workload(20, 12, 2)


def estimate(app: Any, workload: Workload = ANSWER, **rest: Any) -> Estimate:
    return estimate_model(app, find_hardware("trn2"), workload, **rest)


@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", INT8),
        ("llama", PAGED),
        ("mistral", {**PAGED, **INT8, "kv_cache_quant": True}),
        ("mixtral", {}),
    ],
)
def test_memory_is_what_loading_takes(
    family: str, options: dict[str, Any], tp_degree: int, tmp_path: Path
) -> None:
    folder = save_tiny(tiny_hf_model(family), tmp_path / "tiny")
    options = {"seq_len": 32, "batch_size": 2, "tp_degree": tp_degree, **options}
    check_memory(folder, options)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_memory_is_what_the_cpu_backend_takes(tmp_path: Path) -> None:
    check_memory(save_tiny(tiny_hf_model("llama"), tmp_path / "tiny"), COMPILED)


def check_memory(folder: Path, options: dict[str, Any]) -> None:
    planned = estimate(make_app(folder, **options)).memory
    for rank in load_app(folder, **options).runner.executables:
        caches = memory(rank.caches)
        weights = memory(tensors_held(rank)) - caches
        assert planned.caches == caches
        assert abs(planned.weights - weights) <= 0.05 * weights


def test_a_request_is_the_sum_of_its_steps(make: Any) -> None:
    app = make(enable_bucketing=True, token_generation_buckets=[24, 64])
    found = estimate(app)
    prefill, *decodes = (graph.times.total for graph in found.graphs)
    assert found.first_token.total == prefill
    assert found.per_token.total == decodes[1]  # the seventh of twelve sees more than 24 tokens
    assert found.request_seconds == pytest.approx(prefill + 4 * decodes[0] + 7 * decodes[1])
    assert found.tokens_per_second == pytest.approx(24 / found.request_seconds)
    assert found.bound == found.per_token.bound


def test_one_token_is_a_prefill_only(make: Any) -> None:
    found = estimate(make(), Workload(20, 1, 2))
    assert found.per_token.total == 0
    assert found.request_seconds == found.first_token.total
    assert found.bound == found.first_token.bound


def test_pieces_of_a_prompt_come_before_the_first_token(make: Any) -> None:
    app = make(windowed_context_encoding_size=16)
    found = estimate(app)
    times = {graph.spec.phase: graph.times.total for graph in found.graphs}
    assert found.first_token.total == pytest.approx(times[Phase.PREFILL] + times[Phase.EXTEND])


def test_speculation_divides_a_verify_step_by_what_it_yields(make: Any) -> None:
    app = make(speculation_length=4)
    plain, drafted = (
        estimate(app, speculation=Speculation(2.0, seconds)) for seconds in (0.0, 0.5)
    )
    verify = next(g.times.total for g in plain.graphs if g.spec.phase is Phase.VERIFY)
    assert plain.per_token.total == pytest.approx(verify / 2)
    assert drafted.per_token.total == pytest.approx((verify + 0.5) / 2)
    assert drafted.bound == "draft"


def test_what_does_not_fit_says_so(make: Any) -> None:
    found = estimate(make())
    assert found.memory.fits
    assert found.memory.total == (
        found.memory.weights + found.memory.caches + found.memory.workspace
    )
    huge = estimate(make(max_batch_size=10**9))
    assert not huge.memory.fits


def test_lengths_that_cannot_be_are_refused(make: Any) -> None:
    with pytest.raises(BucketError, match="longer than seq_len=64"):
        estimate(make(), Workload(32, 40, 2))
    with pytest.raises(ConfigError, match="needs an acceptance_length"):
        estimate(make(speculation_length=4))
    for app, length in ((make(speculation_length=4), 4.5), (make(), 2.0)):
        with pytest.raises(ConfigError, match=f"acceptance_length={length} is not between 1 and"):
            estimate(app, speculation=Speculation(length))
