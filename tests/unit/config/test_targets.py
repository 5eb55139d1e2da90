from __future__ import annotations

import pytest

from nxdi.config.neuron import LNC2_TARGETS
from nxdi.config.targets import (
    TARGETS,
    check_memory,
    check_ranks,
    choose_logical_size,
    find_target,
)
from nxdi.errors import ConfigError, UnsupportedError

GIB = 2**30


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_by_its_name(name: str) -> None:
    assert find_target(name).name == name


@pytest.mark.parametrize("name", ["", "trn4", "TRN2", "cpu"])
def test_no_such_target(name: str) -> None:
    with pytest.raises(ConfigError, match=f"target='{name}' is not known; use one of inf2, trn1"):
        find_target(name)


@pytest.mark.parametrize(
    ("name", "logical_size", "ranks", "gib"),
    [
        ("inf2", 1, 24, 16),
        ("trn1", 1, 32, 16),
        ("trn2", 1, 128, 12),
        ("trn2", 2, 64, 24),
        ("trn3", 1, 128, 18),
        ("trn3", 2, 64, 36),
    ],
)
def test_ranks_and_memory(name: str, logical_size: int, ranks: int, gib: int) -> None:
    target = find_target(name)
    assert target.max_ranks(logical_size) == ranks
    assert target.rank_memory(logical_size) == gib * GIB


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("inf2", None, 1),
        ("trn1", 1, 1),
        ("trn2", None, 2),
        ("trn2", 1, 1),
        ("trn2", 2, 2),
        ("trn3", None, 2),
    ],
)
def test_cores_per_rank(name: str, asked: int | None, expected: int) -> None:
    assert choose_logical_size(find_target(name), asked) == expected


@pytest.mark.parametrize(
    ("name", "asked", "remedy"), [("inf2", 2, "1"), ("trn1", 2, "1"), ("trn2", 3, "1 or 2")]
)
def test_cores_per_rank_that_a_target_does_not_have(name: str, asked: int, remedy: str) -> None:
    with pytest.raises(ConfigError, match=f"logical_nc_config={asked} on {name}: use {remedy}$"):
        choose_logical_size(find_target(name), asked)


def test_the_config_knows_the_same_defaults() -> None:
    default_two = [name for name, target in TARGETS.items() if target.logical_sizes[0] == 2]
    assert sorted(LNC2_TARGETS) == sorted(default_two)


def test_as_many_ranks_as_an_instance_has() -> None:
    check_ranks(find_target("trn2"), 2, 64)
    with pytest.raises(UnsupportedError, match="65 ranks do not fit one trn2 instance"):
        check_ranks(find_target("trn2"), 2, 65)


def test_nine_tenths_of_the_memory_may_be_used() -> None:
    usable = 24 * GIB * 9 // 10
    check_memory(find_target("trn2"), 2, usable)
    message = r"one rank needs 21.6 GiB .* has 21.6 GiB .* raise tp_degree, or lower seq_len"
    with pytest.raises(UnsupportedError, match=message):
        check_memory(find_target("trn2"), 2, usable + 1)
