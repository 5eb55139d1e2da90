"""Feed-forward blocks, gated (down(act(gate(x)) * up(x))) and plain (down(act(up(x))))."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.errors import ConfigError
from nxdi.kernels.ops import GatedMLPCall
from nxdi.kernels.registry import Kernel, choose, register
from nxdi.modules.sequence import SequenceGather
from nxdi.parallel_layers.layers import ColumnParallelLinear, RowParallelLinear, unread_reason


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    # Three names that Hugging Face has for one formula.
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation that Hugging Face calls `name`. Raises: ConfigError if it is not known."""
    if not isinstance(name, str) or name not in _ACTIVATIONS:  # of a config: it may be anything
        raise ConfigError(f"activation {name!r} is not known; known are {sorted(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def split_gate_up(state: dict[str, Tensor], prefix: str) -> None:
    """Make gate_proj and up_proj below `prefix` of one gate_up_proj, the rows of gate first."""
    for kind in ("weight", "bias"):
        fused = state.pop(f"{prefix}gate_up_proj.{kind}", None)
        if fused is not None:
            gate, up = fused.tensor_split(2)
            state[f"{prefix}gate_proj.{kind}"] = gate
            state[f"{prefix}up_proj.{kind}"] = up


def _widen(config: InferenceConfig, size: int, bias: bool) -> ColumnParallelLinear:
    """hidden_size -> this rank's part of `size`."""
    return ColumnParallelLinear(
        config.hidden_size,
        size,
        bias,
        gather_output=False,
        dtype=config.neuron_config.torch_dtype,
        pad=True,
    )


def _narrow(config: InferenceConfig, size: int, bias: bool) -> RowParallelLinear:
    """This rank's part of `size` -> hidden_size."""
    neuron = config.neuron_config
    return RowParallelLinear(
        size,
        config.hidden_size,
        bias,
        input_is_parallel=True,
        dtype=neuron.torch_dtype,
        pad=True,
        sequence_parallel_enabled=neuron.sequence_parallel_enabled,
    )


class GatedMLP(nn.Module):
    """SwiGLU and its relatives, column- then row-parallel.

    Shapes: x [B, S, hidden] -> same.  Source: arXiv:2002.05202. A checkpoint may have gate and up
    as one `gate_up_proj`, the rows of gate first.
    intermediate_size: default: the config's.
    """

    def __init__(
        self, config: InferenceConfig, bias: bool = False, intermediate_size: int | None = None
    ) -> None:
        super().__init__()
        size = intermediate_size or config.intermediate_size
        self.act, self.act_name = activation(config.hidden_act), config.hidden_act
        self.gather = SequenceGather(config.neuron_config.sequence_parallel_enabled)
        self.gate_proj = _widen(config, size, bias)
        self.up_proj = _widen(config, size, bias)
        self.down_proj = _narrow(config, size, bias)

    def preshard_hook(self, model_state_dict: dict[str, Tensor], prefix: str) -> None:
        """Split a fused tensor in a full checkpoint; prefix: this module's path plus "weight"."""
        split_gate_up(model_state_dict, prefix.removesuffix("weight"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.gather(x)
        call = self._describe(x)
        out: Tensor = choose(GATED_MLP, call).run(self, x, call)
        return out

    def multiply(self, x: Tensor, call: GatedMLPCall) -> Tensor:
        """The result for whole sequences, product by product."""
        out: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return out

    def _describe(self, x: Tensor) -> GatedMLPCall:
        reason = unread_reason(x.dtype, self.gate_proj, self.up_proj, self.down_proj)
        hidden_size = x.shape[-1]
        return GatedMLPCall(
            num_rows=x.numel() // hidden_size,
            hidden_size=hidden_size,
            intermediate_size=self.gate_proj.weight.numel() // hidden_size,
            dtype=x.dtype,
            act=self.act_name,
            peculiarity="the gate has a bias" if self.gate_proj.bias is not None else reason,
        )


GATED_MLP = "gated_mlp"
register(GATED_MLP, "generic", Kernel.plain(GatedMLP.multiply))


class PlainMLP(nn.Module):
    """Two projections around an activation, column- then row-parallel.

    Shapes: x [B, S, hidden] -> same.  Source: arXiv:1706.03762 section 3.3.
    """

    def __init__(self, config: InferenceConfig, bias: bool = True) -> None:
        super().__init__()
        self.act = activation(config.hidden_act)
        self.gather = SequenceGather(config.neuron_config.sequence_parallel_enabled)
        self.up_proj = _widen(config, config.intermediate_size, bias)
        self.down_proj = _narrow(config, config.intermediate_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act(self.up_proj(self.gather(x))))
        return out
