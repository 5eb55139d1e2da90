from __future__ import annotations

from typing import Any

from nxdi.kernels import measure_coverage, simulate
from sim_kernels import nki, nl, random_array, stored


@nki.jit
def branching(x: Any, squares: bool) -> Any:
    """Says something first."""
    tile = nl.load(x)
    if squares:
        tile = nl.square(tile)
    for _ in range(2):
        tile = nl.add(tile, 1.0)
    return stored(tile)


def test_lines_and_branches_that_did_not_run_are_named() -> None:
    first = branching.function.__code__.co_firstlineno
    with measure_coverage(branching) as coverage:
        simulate(branching)(random_array(4, 4), False)
    assert coverage.missing_lines == [first + 5]
    assert coverage.missing_branches == [(first + 4, True)]
    assert "5 of 6 lines, 3 of 4 branches" in str(coverage)


def test_runs_add_up() -> None:
    with measure_coverage(branching) as coverage:
        for squares in (False, True):
            simulate(branching)(random_array(4, 4), squares)
    assert coverage.missing_lines == []
    assert coverage.missing_branches == []
