"""Predictions against published measurements that the constants were not fitted to.

`pytest -s` shows the table; `benchmarks/planner.py` shows it for every row.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from nxdi.tools.estimate.times import PUBLISHED

SMALL = ("Llama-3-8B", "Llama-2-7b", "Mistral-7B-Instruct-v0.2")
BENCHMARKS = Path(__file__).parents[4] / "benchmarks"


@pytest.fixture(scope="module")
def planner() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("planner")


def test_the_table_is_whole(planner: ModuleType) -> None:
    rows = planner.published_rows()
    assert [row.number for row in rows] == list(range(1, 84))
    assert {row.model for row in rows} == planner.CONFIGS.keys()
    assert len(planner.published_rows("inf2")) == 42
    assert len(planner.published_rows("trn1")) == 36


def test_small_models_on_trn1_from_constants_of_inf2(planner: ModuleType) -> None:
    rows = [row for row in planner.published_rows("trn1") if row.model in SMALL]
    errors = {row: planner.decode_step(row).times().total * 1e3 / row.tpot_ms - 1 for row in rows}
    print()
    for row, error in errors.items():
        print(f"{row.number:>3} {row.model:26}{row.batch_size:>3}{row.seq_len:>7}{error:>+6.0%}")
    assert sum(abs(error) <= planner.CLOSE for error in errors.values()) >= 0.8 * len(rows)


@pytest.mark.slow
def test_all_of_trn1_from_constants_of_inf2(planner: ModuleType) -> None:
    found = [planner.compare(row) for row in planner.published_rows("trn1")]
    print("", *planner.table(found), sep="\n")
    assert planner.share_close(found, "tpot_ms") >= 0.8
    assert planner.share_close(found, "tokens_per_second") >= 0.8
    # Not a promise: shapes alike differ by a factor of two and more in what was published.
    assert planner.share_close(found, "ttft_ms") >= 0.3


@pytest.mark.slow
def test_the_constants_are_those_of_the_fit(planner: ModuleType) -> None:
    fitted = planner.fit_efficiency(planner.published_rows("inf2"))
    for item in fields(fitted):
        assert getattr(PUBLISHED, item.name) == pytest.approx(getattr(fitted, item.name), rel=0.02)
