"""OnDeviceSamplingConfig: defaults and ranges."""

from __future__ import annotations

import pytest

from nxdi.config import OnDeviceSamplingConfig
from nxdi.errors import ConfigError


def test_defaults_are_greedy() -> None:
    config = OnDeviceSamplingConfig()
    assert not config.do_sample
    assert not config.dynamic
    assert (config.top_k, config.top_p, config.temperature) == (1, 1.0, 1.0)
    assert config.global_topk == 256


@pytest.mark.parametrize("top_k", [-1, 0, 1, 100_000])
def test_top_k_has_no_cap(top_k: int) -> None:
    assert OnDeviceSamplingConfig(top_k=top_k, global_topk=4).top_k == top_k


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", -2),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("do_sample", "yes"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}="):
        OnDeviceSamplingConfig(**{name: value})


def test_edges_are_accepted() -> None:
    assert OnDeviceSamplingConfig(temperature=0).temperature == 0
    assert OnDeviceSamplingConfig(top_p=1).top_p == 1


def test_unknown_keyword_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'topk' \(did you mean top_k"):
        OnDeviceSamplingConfig(topk=4)
