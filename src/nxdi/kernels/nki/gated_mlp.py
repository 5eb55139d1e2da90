"""What the kernels of gated MLPs share: the call they decide on, and the reference in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# By the names of Hugging Face.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
}


@dataclass(frozen=True)
class Call:
    """What a call is decided on: x [T, H], gate and up [H, I], down [I, H], perhaps gamma [1, H].

    `num_cores`: cores that share the work, as in `kernel[2](...)`.
    """

    x_shape: tuple[int, ...]
    gate_shape: tuple[int, ...]
    down_shape: tuple[int, ...]
    dtype: torch.dtype
    gamma_shape: tuple[int, ...] | None = None
    activation: str = "silu"
    num_cores: int = 1


def declined(call: Call) -> str | None:
    """Why neither kernel of a gated MLP can serve a call, or None."""
    hidden = call.x_shape[-1]
    intermediate = call.gate_shape[-1]
    is_mlp = len(call.x_shape) == 2 and call.gate_shape == (hidden, intermediate)
    if not is_mlp or call.down_shape != (intermediate, hidden):
        return (
            f"x {call.x_shape}, gate {call.gate_shape} and down {call.down_shape} are no "
            "[T, H], [H, I] and [I, H]"
        )
    if call.gamma_shape not in (None, (1, hidden)):
        return f"gamma {call.gamma_shape} is not [1, {hidden}]"
    if hidden % 128:
        return f"hidden size {hidden} is no multiple of 128"
    if call.dtype not in (torch.bfloat16, torch.float16):
        return f"dtype {call.dtype} is no float of 16 bits"
    if call.activation not in ACTIVATIONS:
        return f"activation {call.activation!r} is none of {', '.join(ACTIVATIONS)}"
    return None if call.num_cores in (1, 2) else f"{call.num_cores} cores are not 1 or 2"


def reference(
    x: Tensor,
    gate_w: Tensor,
    up_w: Tensor,
    down_w: Tensor,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
    activation: str = "silu",
) -> Tensor:
    """down(act(gate(x)) * up(x)), of RMSNorm(x) where there is a gamma, in float32."""
    rows = x.float()
    if gamma is not None:
        rows = torch.rms_norm(rows, rows.shape[-1:], gamma[0].float(), eps)
    products = ACTIVATIONS[activation](rows @ gate_w.float()) * (rows @ up_w.float())
    return (products @ down_w.float()).to(x.dtype)
