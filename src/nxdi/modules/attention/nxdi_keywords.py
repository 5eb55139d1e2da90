"""The keywords of NxDI's attention constructor beyond our own: what each means here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from nxdi.config import NeuronConfig
from nxdi.errors import ConfigError, UnsupportedError

# Accepted in any value: they choose how a Neuron device computes the same result, or repeat what is
# known from the group the module is built in.
_WITHOUT_EFFECT = frozenset(
    {
        "num_cores_per_group",
        "tensor_model_parallel_group",
        "is_post_global_attn_layer",
        "is_pre_global_attn_layer",
        "optimize_interleave_attn",
    }
)
_REFUSED = {
    "use_qk_norm": "its result would depend on tp_degree; give q_layernorm and k_layernorm",
}


@dataclass(frozen=True)
class NxdiKeywords:
    """NxDI's keywords that change the result. `softmax_scale` divides QK^T."""

    rope_theta: float | None = None
    use_scaled_rope: bool = False
    rms_norm_eps: float | None = None
    post_transpose_layernorm: bool = False
    clip_qkv: float | None = None
    softmax_scale: float | None = None
    o_proj_layer_name: str = "o_proj"
    learned_sinks_size: int | None = None

    @classmethod
    def read(cls, given: dict[str, Any], neuron_config: NeuronConfig) -> NxdiKeywords:
        """Raises: ConfigError for an unknown keyword, UnsupportedError for one refused here."""
        known = {f.name for f in fields(cls)}
        values = {}
        for name, value in given.items():
            if name in known:
                values[name] = value
            elif name == "sequence_parallel_enabled":
                _check_sequence_parallel(value, neuron_config)
            elif name in _REFUSED:
                if value:
                    raise UnsupportedError(f"{name}={value!r} is refused: {_REFUSED[name]}")
            elif name not in _WITHOUT_EFFECT and name != "qk_norm_placement":
                raise ConfigError(f"NeuronAttentionBase has no keyword {name!r}; remove it")
        read = cls(**values)
        if read.learned_sinks_size not in (None, 0, 1):
            raise UnsupportedError(f"learned_sinks_size={read.learned_sinks_size}: use 1 or None")
        return read


def _check_sequence_parallel(value: bool | None, neuron_config: NeuronConfig) -> None:
    if value is not None and value != neuron_config.sequence_parallel_enabled:
        raise UnsupportedError(
            f"sequence_parallel_enabled={value} for one attention layer differs from "
            f"NeuronConfig's {neuron_config.sequence_parallel_enabled}; leave it out"
        )
