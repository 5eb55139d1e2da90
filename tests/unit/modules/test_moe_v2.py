"""The mixture as NxDI's layers make and call it; tests/port has a whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.config import InferenceConfig, MoENeuronConfig
from nxdi.errors import ConfigError
from nxdi.modules.moe import MoE
from nxdi.modules.moe_v2 import initialize_moe_module
from nxdi.modules.norm import RMSNorm
from tiny_modules import drawn, filled, full_weights, rank_modules, tiny_config
from tiny_moe import options_for, spec_with

EXPERTS: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "hidden_act": "silu",
    "n_shared_experts": 0,
}


def config_with(options: MoENeuronConfig | None = None, **changes: Any) -> InferenceConfig:
    return InferenceConfig(options or options_for(), **{**EXPERTS, **changes})


def test_what_the_config_says() -> None:
    options = options_for(router_config={"act_fn": "sigmoid"}, glu_type="swiglu")
    options.normalize_top_k_affinities = False  # as ports set it
    config = config_with(options, n_shared_experts=2)
    made = initialize_moe_module(config, router_bias=True, experts_bias=True)
    expected = spec_with(
        router_act="sigmoid",
        normalize=False,
        router_bias=True,
        experts_bias=True,
        glu_type="swiglu",
        shared_size=24,
    )
    assert made.router.spec == expected
    assert made.shared_experts is not None
    assert made.shared_experts.up_proj.output_size == 24


def test_the_same_result_in_a_tuple() -> None:
    config, x = config_with(), drawn(2, 3, 16)
    full = full_weights(lambda: initialize_moe_module(config))
    (nxdis,) = rank_modules(lambda: initialize_moe_module(config), 1, full)
    (ours,) = rank_modules(lambda: MoE(spec_with(), options_for()), 1, full)
    (got,) = nxdis(x, None)
    assert torch.equal(got, ours(x))


def test_a_norm_is_applied_and_is_no_weight_of_the_mixture() -> None:
    config, x = config_with(), drawn(2, 3, 16)
    norm = filled(lambda: RMSNorm(16))
    full = full_weights(lambda: initialize_moe_module(config))
    (without,) = rank_modules(lambda: initialize_moe_module(config), 1, full)
    (with_norm,) = rank_modules(lambda: initialize_moe_module(config, rmsnorm=norm), 1, full)
    assert with_norm.state_dict().keys() == full.keys()
    assert torch.equal(with_norm(x)[0], without(norm(x))[0])


def test_weights_under_nxdis_names() -> None:
    made = initialize_moe_module(config_with())
    state: dict[str, Tensor] = {
        "mlp.router.linear_router.weight": drawn(8, 16),
        "mlp.expert_mlps.mlp_op.gate_up_proj.weight": drawn(8, 16, 24),
        "mlp.expert_mlps.mlp_op.down_proj.weight": drawn(8, 12, 16),
    }
    made.preshard_hook(state, "mlp.weight")
    shapes = {name.removeprefix("mlp."): tensor.shape for name, tensor in state.items()}
    assert shapes == {name: tensor.shape for name, tensor in made.state_dict().items()}


def test_plain_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs a MoENeuronConfig"):
        initialize_moe_module(tiny_config(EXPERTS))
