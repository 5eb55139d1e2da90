"""One attention computation: describe it, ask the registry for a kernel, run it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nxdi.kernels.masks import MaskPolicy
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.reference import attend as _kernels  # noqa: F401  registers the attend kernels
from nxdi.kernels.registry import choose
from nxdi.modules.context import LayerContext
from nxdi.modules.kvcache.spec import Attended
from nxdi.types import Phase


@dataclass(frozen=True)
class Attend:
    """The attention core of one layer, fixed at construction."""

    mask: MaskPolicy
    scale: float
    softcap: float | None = None

    def __call__(
        self, q: Tensor, attended: Attended, sinks: Tensor | None, ctx: LayerContext
    ) -> Tensor:
        """q [B, N * G, S, D] against keys and values [B, N, L, D] -> [B, N * G, S, D]."""
        batch, num_kv_heads, num_keys, head_dim = attended.keys.shape
        grouped = q.view(batch, num_kv_heads, -1, *q.shape[2:])
        call = AttendCall(
            num_kv_heads=num_kv_heads,
            group_size=grouped.shape[2],
            num_queries=q.shape[2],
            num_keys=num_keys,
            head_dim=head_dim,
            dtype=q.dtype,
            mask=self.mask,
            scale=self.scale,
            softcap=self.softcap,
            has_sinks=sinks is not None,
            aligned=ctx.phase is Phase.PREFILL,
        )
        allowed = ctx.allowed(self.mask, attended.positions)
        if sinks is not None:
            sinks = sinks.view(num_kv_heads, -1)
        out: Tensor = choose("attend", call).run(
            grouped, attended.keys, attended.values, allowed, sinks, call
        )
        return out.reshape(q.shape)
