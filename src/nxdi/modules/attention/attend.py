"""One attention computation: describe it, ask the registry for a kernel, run it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nxdi.kernels.masks import MaskPolicy
from nxdi.kernels.ops import AttendCall, StoredAttendCall
from nxdi.kernels.reference import attend as _kernels  # noqa: F401  registers the attend kernels
from nxdi.kernels.registry import Kernel, choose, register
from nxdi.modules.context import LayerContext
from nxdi.modules.kvcache.spec import Attended, Stored
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
        """q [B, N * G, S, D], keys [B, N, L, D], values [B, N, L, Dv] -> [B, N * G, S, Dv]."""
        k, v, positions, _ = attended
        grouped = _grouped(q, k)
        call = self._describe(grouped, k.shape[3], v, ctx, sinks)
        allowed = ctx.allowed(self.mask, positions)
        if sinks is not None:
            sinks = sinks.view(k.shape[1], -1)
        if attended.stored is None:
            out: Tensor = choose("attend", call).run(grouped, k, v, allowed, sinks, call)
        else:
            cached = _in_cache(call, attended.stored)
            kernel = choose(ATTEND_STORED, cached)
            out = kernel.run(grouped, attended, allowed, sinks, cached)
        return out.flatten(1, 2)

    def over_latents(
        self, q: Tensor, q_rest: Tensor, attended: Attended, ctx: LayerContext
    ) -> Tensor:
        """The same where a key is its value and what `attended.keys` holds.

        q [B, N * G, S, Dv] and q_rest [B, N * G, S, R] against keys [B, N, L, R], values
        [B, N, L, Dv] -> [B, N * G, S, Dv].
        """
        rest, v, positions, _ = attended
        grouped = _grouped(q, v)
        call = self._describe(grouped, rest.shape[3] + v.shape[3], v, ctx)
        allowed = ctx.allowed(self.mask, positions)
        kernel = choose("attend_latent", call)
        out: Tensor = kernel.run(grouped, _grouped(q_rest, v), rest, v, allowed, call)
        return out.flatten(1, 2)

    def _describe(
        self,
        q: Tensor,
        head_dim: int,
        v: Tensor,
        ctx: LayerContext,
        sinks: Tensor | None = None,
    ) -> AttendCall:
        return AttendCall(
            num_kv_heads=v.shape[1],
            group_size=q.shape[2],
            num_queries=q.shape[3],
            num_keys=v.shape[2],
            head_dim=head_dim,
            value_dim=v.shape[3],
            dtype=q.dtype,
            mask=self.mask,
            scale=self.scale,
            softcap=self.softcap,
            has_sinks=sinks is not None,
            aligned=ctx.phase is Phase.PREFILL,
        )


def _grouped(q: Tensor, keys: Tensor) -> Tensor:
    """[B, N * G, S, D] -> [B, N, G, S, D], N the heads of `keys`."""
    grouped: Tensor = q.unflatten(1, (keys.shape[1], -1))
    return grouped


def _in_cache(call: AttendCall, stored: Stored) -> StoredAttendCall:
    block_size = 0 if stored.blocks is None else stored.k.shape[2]
    return StoredAttendCall(call, stored.k.dtype, block_size)


def _attend_widened(
    q: Tensor, attended: Attended, allowed: Tensor, sinks: Tensor | None, call: StoredAttendCall
) -> Tensor:
    """To the keys and values that the cache stands for, by what serves those."""
    kernel = choose("attend", call.attend)
    out: Tensor = kernel.run(q, attended.keys, attended.values, allowed, sinks, call.attend)
    return out


ATTEND_STORED = "attend_stored"
register(ATTEND_STORED, "generic", Kernel.plain(_attend_widened))
