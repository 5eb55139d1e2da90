from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nxdi.errors import ConfigError
from nxdi.modules.rope import rope_from_config
from nxdi.modules.yarn import score_growth
from tiny_modules import tiny_config

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
HEAD_DIM = 32


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"beta_fast": 16.0, "beta_slow": 2.0},
        {"truncate": False},
        {"attention_factor": 1.5},
        {"mscale": 0.7, "mscale_all_dim": 0.4},
        {"mscale": 0.7, "mscale_all_dim": 0},
        {"factor": 0.5},
        {"beta_fast": 1.0, "beta_slow": 1.0, "original_max_position_embeddings": 1},
    ],
)
@pytest.mark.parametrize("theta", [10000.0, 150.0])
def test_as_transformers(theta: float, extra: dict[str, Any]) -> None:
    scaling = {**YARN, **extra}
    sizes = {"head_dim": HEAD_DIM, "max_position_embeddings": 256}
    theirs = LlamaConfig(**sizes, rope_parameters={**scaling, "rope_theta": theta})
    inv_freq, grows = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    ours = rope_from_config(tiny_config({**sizes, "rope_theta": theta, "rope_scaling": scaling}))
    torch.testing.assert_close(ours.inv_freq, inv_freq, rtol=1e-6, atol=0)
    assert ours.attention_scaling == pytest.approx(grows, rel=1e-9)


@pytest.mark.parametrize(
    "scaling", [{"rope_type": "default"}, YARN, *({**YARN, "mscale_all_dim": m} for m in (0, 0.7))]
)
def test_the_growth_of_scores_is_transformers(scaling: dict[str, Any]) -> None:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale

    assert score_growth(scaling) == pytest.approx(yarn_apply_mscale({"factor": 1.0, **scaling}, 1))
    assert (score_growth(scaling) > 1) is bool(scaling.get("mscale_all_dim"))


def test_without_scaling_scores_do_not_grow() -> None:
    assert score_growth(None) == 1.0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"factor": None}, "positive factor, not None"),
        ({"original_max_position_embeddings": 0}, "positive original_max_position_embeddings"),
        ({"beta_fast": "fast"}, "positive beta_fast, not 'fast'"),
        ({"attention_factor": -1}, "positive attention_factor, not -1"),
        ({"rope_theta": 1.0}, "YaRN needs a rope_theta above 1"),
    ],
)
def test_wrong_numbers(extra: dict[str, Any], message: str) -> None:
    attributes = {"rope_theta": extra.get("rope_theta", 100.0), "rope_scaling": {**YARN, **extra}}
    with pytest.raises(ConfigError, match=message):
        rope_from_config(tiny_config(attributes))
