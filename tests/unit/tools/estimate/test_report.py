"""Estimates as text, JSON data and a page."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from nxdi.errors import ConfigError
from nxdi.tools.benchmark.stages import Workload
from nxdi.tools.estimate import Estimate, estimate_model, find_hardware
from nxdi.tools.estimate.report import Variant, compare, describe, render_page, text_table, to_dict


@pytest.fixture
def found(make: Any) -> Estimate:
    return estimate_model(make(tp_degree=2), find_hardware("trn2"), Workload(20, 12, 2))


@pytest.fixture
def variants(found: Estimate) -> list[Variant]:
    refusal = ConfigError("<no> such thing")
    return [Variant({"tp_degree": 2}, found), Variant({"tp_degree": 5}, None, refusal)]


def test_one_estimate_as_text(found: Estimate) -> None:
    lines = list(describe(found))
    assert lines[0] == (
        "tiny on trn2, 2 cores per rank: 2 prompts with 20 tokens and 12 new tokens each"
    )
    assert lines[1].endswith("of 23.19 GB on each rank: fits")
    assert any(line.startswith("token_generation_model_b2_s64 ") for line in lines)
    assert any("112" in line or "no multiple" in line for line in lines)


def test_columns_are_as_wide_as_they_need(variants: list[Variant]) -> None:
    assert list(text_table(["a", "bb"], [["long", "1"]])) == ["a     bb", "long   1"]
    titles, one, other, reason = compare(variants)
    assert titles.startswith("tp_degree  GB per rank")
    assert one.split()[0] == "2"
    assert other.split() == ["5", "refused"]
    assert reason == "tp_degree 5: <no> such thing"


def test_json_has_all_numbers(variants: list[Variant], found: Estimate) -> None:
    one, other = json.loads(json.dumps([to_dict(variant) for variant in variants]))
    assert one["per_token"]["total"] == found.per_token.total
    assert one["memory"]["fits"] is True
    assert [graph["phase"] for graph in one["graphs"]] == ["prefill", "decode"]
    assert one["graphs"][1]["num_collectives"] == found.graphs[1].work.num_collectives
    assert other == {"options": {"tp_degree": 5}, "refusal": "<no> such thing"}


def test_the_page_is_well_formed_and_has_both_charts(variants: list[Variant]) -> None:
    page = render_page(variants)
    tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert len(tree.findall(".//svg")) == 2
    assert "&lt;no&gt; such thing" in page
    assert ElementTree.fromstring(render_page(variants[1:]).removeprefix("<!DOCTYPE html>\n"))
