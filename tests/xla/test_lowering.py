"""What every lowered graph must be, for any compiler that takes it."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from collective_counts import collectives_of_step
from nxdi.tools.lowering.lower import Lowered
from nxdi.tools.lowering.summary import summarise
from tiny_models import FAMILIES
from xla.conftest import Apps, Graphs

pytestmark = pytest.mark.xla

every_family = pytest.mark.parametrize("family", FAMILIES)
every_degree = pytest.mark.parametrize("tp_degree", [1, 2])


def edge_types(lowered: Lowered) -> set[str]:
    """Types of the entry computation's parameters, Python's numbers apart, and of its results."""
    entry = lowered.text.partition("\nENTRY ")[2]
    found = {
        dtype
        for dtype, number in re.findall(r" = (\w+)\[\S* parameter\((\d+)\)", entry)
        if lowered.parameters[int(number)] != "constant"
    }
    results = next(line for line in entry.splitlines() if "ROOT" in line).split(" tuple(")[0]
    return found | set(re.findall(r"\b(\w+)\[", results))


@every_degree
@every_family
def test_collectives_span_all_ranks_and_are_as_many_as_predicted(
    family: str, tp_degree: int, graphs_of: Graphs, app_of: Apps
) -> None:
    layers = app_of(family, tp_degree).config.num_hidden_layers
    expected = collectives_of_step(family, layers) if tp_degree > 1 else Counter()
    for lowered in graphs_of(family, tp_degree).values():
        found: Counter[str] = Counter()
        for collective, number in summarise(lowered).collectives:
            assert collective.groups == "{{0,1}}"
            found[collective.op.replace("-", "_")] += number
        assert found == expected


@every_degree
@every_family
def test_every_cache_is_aliased_and_nothing_else_is_state(
    family: str, tp_degree: int, graphs_of: Graphs, app_of: Apps
) -> None:
    layers = app_of(family, tp_degree).config.num_hidden_layers
    for lowered in graphs_of(family, tp_degree).values():
        outputs = len(lowered.spec.outputs)
        names = [lowered.parameters[number] for number in lowered.aliases.values()]
        assert names == [f"cache_{i}" for i in range(2 * layers)]
        assert list(lowered.aliases) == [outputs + i for i in range(2 * layers)]


@every_degree
@every_family
def test_every_parameter_is_a_weight_a_cache_or_an_input(
    family: str, tp_degree: int, graphs_of: Graphs
) -> None:
    for lowered in graphs_of(family, tp_degree).values():
        inputs = {item.name for item in lowered.spec.inputs}
        strangers = [
            name
            for name in lowered.parameters
            if not name.startswith(("model.", "cache_", "constant")) and name not in inputs
        ]
        assert strangers == []
        # torch_xla passes Python numbers as scalars; anything larger would be a table nobody gave.
        assert all(value.dim() == 0 for value in lowered.constants.values())
        assert inputs <= set(lowered.parameters)


@every_degree
@every_family
def test_types(family: str, tp_degree: int, graphs_of: Graphs) -> None:
    """No float64 anywhere; the edges are float32 and int32."""
    for lowered in graphs_of(family, tp_degree).values():
        summary = summarise(lowered)
        assert "f64" not in summary.types
        assert edge_types(lowered) == {"f32", "s32"}
        print(f"{family} tp={tp_degree} {summary.graph}: {summary.num_instructions} instructions")
