from __future__ import annotations

from typing import Any

import pytest

from nxdi.config import NeuronConfig
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.modules.attention.nxdi_keywords import NxdiKeywords


def read(sequence_parallel: bool = False, **given: Any) -> NxdiKeywords:
    options = {"tp_degree": 2, "sequence_parallel_enabled": sequence_parallel}
    return NxdiKeywords.read(given, NeuronConfig(**options))


def test_nothing_given() -> None:
    assert read() == NxdiKeywords()


def test_keywords_that_count_are_kept() -> None:
    got = read(rope_theta=5e5, clip_qkv=8.0, softmax_scale=2.0, learned_sinks_size=1)
    assert got == NxdiKeywords(
        rope_theta=5e5, clip_qkv=8.0, softmax_scale=2.0, learned_sinks_size=1
    )


@pytest.mark.parametrize(
    "name",
    [
        "num_cores_per_group",
        "tensor_model_parallel_group",
        "is_post_global_attn_layer",
        "is_pre_global_attn_layer",
        "optimize_interleave_attn",
        "qk_norm_placement",
    ],
)
def test_keywords_without_effect(name: str) -> None:
    assert read(**{name: object()}) == NxdiKeywords()


def test_an_unknown_keyword() -> None:
    with pytest.raises(ConfigError, match="no keyword 'rope_tetha'; remove it"):
        read(rope_tetha=1.0)


def test_a_refused_keyword_may_say_no() -> None:
    assert read(use_qk_norm=None) == read(use_qk_norm=False) == NxdiKeywords()
    with pytest.raises(UnsupportedError, match=r"use_qk_norm=True is refused: .*give q_layernorm"):
        read(use_qk_norm=True)


@pytest.mark.parametrize("size", [None, 0, 1])
def test_one_sink_per_head(size: int | None) -> None:
    assert read(learned_sinks_size=size).learned_sinks_size == size


def test_more_sinks_than_one() -> None:
    with pytest.raises(UnsupportedError, match="learned_sinks_size=2: use 1 or None"):
        read(learned_sinks_size=2)


@pytest.mark.parametrize("enabled", [False, True])
def test_sequence_parallelism_is_the_models(enabled: bool) -> None:
    assert read(enabled, sequence_parallel_enabled=enabled) == NxdiKeywords()
    assert read(enabled, sequence_parallel_enabled=None) == NxdiKeywords()
    with pytest.raises(UnsupportedError, match=f"{not enabled} for one attention layer differs"):
        read(enabled, sequence_parallel_enabled=not enabled)
