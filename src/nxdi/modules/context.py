"""What one step hands to its layers: phase, positions and each layer's cache.

Layers hold no step state. They are given their context as `ctx`; layers written for NxDI do not
pass it on, so their attention asks for the context of the step that is running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nxdi.errors import ConfigError
from nxdi.kernels.masks import MaskPolicy
from nxdi.modules.kvcache.spec import Attended, CacheState, KVCacheLayout, StepPositions
from nxdi.modules.order import Order
from nxdi.types import Phase


@dataclass
class StepContext:
    """One step of one graph.

    Shapes: position_ids int32 [B, S], -1 = padding; seq_ids int32 [B] or None; blocks int32 [B, n]
    of a paged cache or None. `num_slots` is how many positions its queries may see. `caches` holds
    one state per layer and is replaced, never written in place. `order` says where tokens stand and
    which of them see each other.
    """

    phase: Phase
    position_ids: Tensor
    seq_ids: Tensor | None
    num_slots: int
    caches: list[CacheState]
    blocks: Tensor | None = None
    order: Order = field(kw_only=True)
    _masks: dict[tuple[MaskPolicy, int], Tensor] = field(default_factory=dict)

    def at(self, layer: int) -> LayerContext:
        """The context as layer number `layer` sees it."""
        return LayerContext(self, layer)

    def new_states(self) -> Sequence[CacheState]:
        """The caches after every layer has appended to its own."""
        return self.caches


@dataclass(frozen=True)
class LayerContext:
    """One layer's view of the step."""

    step: StepContext
    layer: int

    @property
    def phase(self) -> Phase:
        return self.step.phase

    @property
    def position_ids(self) -> Tensor:
        """Where the cache has the new tokens [B, S], -1 = padding."""
        return self.step.position_ids

    @property
    def token_places(self) -> Tensor:
        """Where they stand in their sequences [B, S]: what positional embeddings go by."""
        return self.step.order.places

    def append(self, layout: KVCacheLayout, k: Tensor, v: Tensor) -> Attended:
        """Put new keys and values [B, N, S, D] into this layer's cache: what to attend to."""
        self.step.caches[self.layer], attended = layout.append(
            self.step.caches[self.layer], k, v, self._where
        )
        return attended

    def past(self, layout: KVCacheLayout) -> tuple[Tensor, Tensor]:
        """This layer's keys and values [B, N, L, D] as they are before it appends."""
        return layout.past(self.step.caches[self.layer], self._where)

    @property
    def _where(self) -> StepPositions:
        step = self.step
        return StepPositions(
            step.phase, step.position_ids, step.seq_ids, step.num_slots, step.blocks
        )

    def allowed_from_start(self, policy: MaskPolicy) -> Tensor:
        """`allowed` for keys at positions 0, 1, ...: in prefill those of the step itself."""
        if self.phase is Phase.PREFILL:
            return self.allowed(policy, self.position_ids)
        device = self.position_ids.device
        slots = torch.arange(self.step.num_slots, dtype=torch.int32, device=device)[None]
        return self.allowed(policy, slots)

    def allowed(self, policy: MaskPolicy, key_positions: Tensor) -> Tensor:
        """Which keys each query may see, bool [B, S, L]; built once per step, policy and key range.

        Queries that are padding may see everything: their result is thrown away, but must be
        finite.
        """
        key = (policy, key_positions.shape[-1])
        if key not in self.step._masks:
            mask = self.step.order.allowed(policy, key_positions)
            self.step._masks[key] = mask | (self.position_ids < 0).unsqueeze(-1)
        return self.step._masks[key]


FindContext = Callable[[nn.Module], LayerContext]
_RUNNING: ContextVar[FindContext | None] = ContextVar("nxdi_running_step", default=None)


@contextmanager
def running(find_context: FindContext) -> Iterator[None]:
    """Within the block, attention that is not given a context asks `find_context` for its own."""
    token = _RUNNING.set(find_context)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def running_context(module: nn.Module) -> LayerContext:
    """The context of the step that is running, as `module` sees it.

    Raises: ConfigError outside a step.
    """
    find_context = _RUNNING.get()
    if find_context is None:
        raise ConfigError(
            f"{type(module).__name__} was called outside a step of its model; pass ctx=ctx"
        )
    return find_context(module)
