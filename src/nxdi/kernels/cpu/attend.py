"""What computes attention on a CPU: the decode kernel of attend.cpp, else torch's fused kernel.

Shapes are those of the reference: q [B, N, G, S, D], k [B, N, L, D], v [B, N, L, Dv], allowed
[B, S, L] bool, sinks [N, G] or None -> [B, N, G, S, Dv].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from nxdi.errors import ShapeError
from nxdi.kernels.cpu.library import load_op, unsupported_reason
from nxdi.kernels.masks import Causal
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.registry import Kernel, register

ATTEND_C_SHIM = (
    "AOTITorchError aoti_torch_cpu_attend_decode(AtenTensorHandle q, AtenTensorHandle k, "
    "AtenTensorHandle v, AtenTensorHandle allowed, AtenTensorHandle* sinks, double scale, "
    "double* softcap, AtenTensorHandle* result)"
)


def load_attend_op() -> OpOverload:
    """`nxdi_cpu::attend_decode(q, k, v, allowed, sinks, scale, softcap)` for one query per row.

    Shapes: q [B, N, G, 1, D] float32; k, v [B, N, L, D] float32, bfloat16 or float16 of any
            strides, read only where allowed; allowed [B, 1, L] bool; sinks [N, G] float32 or None
            -> [B, N, G, 1, D] float32, zero for a row that sees nothing.
    Raises: UnsupportedError if it cannot be compiled or loaded here.
    """
    return load_op("attend_decode", _result_of)


def attend_decode(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, sinks: Tensor | None, call: AttendCall
) -> Tensor:
    """One query per row: reads each key that a row sees once, and no other."""
    wide_sinks = None if sinks is None else sinks.float()
    out: Tensor = load_attend_op()(q, k, v, allowed, wide_sinks, call.scale, call.softcap)
    return out


def _result_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    sinks: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """The result while tracing: its shape and dtype, no values."""
    if q.dim() != 5 or q.shape[3] != 1 or q.dtype != torch.float32:
        raise ShapeError(
            f"attend_decode: q is {q.dtype} {tuple(q.shape)}; it must be float32 [B, N, G, 1, D]"
        )
    batch, heads, group, _, size = q.shape
    num_keys = allowed.shape[-1]
    expected = {"k": (batch, heads, num_keys, size), "allowed": (batch, 1, num_keys)}
    given = {"k": k, "v": v, "allowed": allowed, "sinks": sinks}
    expected |= {"v": expected["k"], "sinks": (heads, group)}
    for name, tensor in given.items():
        if tensor is not None and tensor.shape != expected[name]:
            raise ShapeError(
                f"attend_decode: {name} is {tuple(tensor.shape)}; for q {tuple(q.shape)} and "
                f"{num_keys} keys it must be {expected[name]}"
            )
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def attend_sdpa(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, sinks: Tensor | None, call: AttendCall
) -> Tensor:
    """torch's fused attention.

    One query per row: the group is the query dimension, so K and V are not repeated. Values shorter
    than keys are padded, since torch fuses only what is of one size.
    """
    missing = max(0, call.head_dim - call.value_dim)
    out = _sdpa(q, k, F.pad(v, (0, missing)) if missing else v, allowed, call)
    return out[..., : call.value_dim] if missing else out


def _sdpa(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, call: AttendCall) -> Tensor:
    if call.num_queries == 1:
        bias = allowed.unsqueeze(1)
        out = F.scaled_dot_product_attention(q.squeeze(3), k, v, attn_mask=bias, scale=call.scale)
        return out.unsqueeze(3)
    flat_q = q.flatten(1, 2)
    flat_k, flat_v = (
        t.unsqueeze(2).expand(q.shape[:3] + t.shape[2:]).flatten(1, 2) for t in (k, v)
    )
    if call.aligned and call.mask == Causal() and call.num_queries == call.num_keys:
        out = F.scaled_dot_product_attention(
            flat_q, flat_k, flat_v, is_causal=True, scale=call.scale
        )
    else:
        out = F.scaled_dot_product_attention(
            flat_q, flat_k, flat_v, attn_mask=allowed.unsqueeze(1), scale=call.scale
        )
    return out.view(*q.shape[:-1], -1)


def _declines_decode(call: AttendCall) -> str | None:
    if call.num_queries != 1:
        return f"{call.num_queries} queries per row, not 1"
    if call.dtype != torch.float32:
        return f"activations are {call.dtype}, not float32"
    if call.head_dim != call.value_dim:
        return f"keys of {call.head_dim} and values of {call.value_dim} numbers"
    return unsupported_reason()


def _declines_sdpa(call: AttendCall) -> str | None:
    if call.has_sinks:
        return "attention sinks"
    return "soft-capped scores" if call.softcap is not None else None


ATTEND_KERNEL = "nxdi_cpu::attend_decode"
register("attend", "cpu", Kernel(ATTEND_KERNEL, attend_decode, _declines_decode))
register("attend", "cpu", Kernel("sdpa", attend_sdpa, _declines_sdpa))
