"""Counts the work of a graph while its model runs on the meta device: no values, no memory.

Nothing here knows a family of models: what is counted are the operators that the model's own code
calls, with the shapes of one rank. Elementwise operators are taken to be fused into the products
around them, and the scores of attention to stay on the chip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from nxdi.graph.plan import GraphSpec
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.reference.attend import attend_explicit
from nxdi.kernels.registry import Kernel, platform, register
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.parallel_layers import collectives as _collectives  # noqa: F401  registers the ops
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.runtime.backends.cpu.pieces import structure, tensors_of
from nxdi.tools.estimate.work import Collective, Product, Work
from nxdi.types import Phase

_ATEN = torch.ops.aten
# Matrix products, and which argument is the left one; the right one follows.
_PRODUCTS = {_ATEN.mm: 0, _ATEN.bmm: 0, _ATEN._int_mm: 0, _ATEN.addmm: 1, _ATEN.baddbmm: 1}
# They read only what they return of their first argument...
_LOOK_UPS = {_ATEN.index, _ATEN.index_select, _ATEN.gather, _ATEN.embedding}
# ... or write only a part of it.
_WRITES = {_ATEN.index_put, _ATEN.scatter, _ATEN.slice_scatter, _ATEN.index_copy}
_COLLECTIVES = {
    getattr(torch.ops.nxdi, name)
    for name in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
}
# A platform whose only kernel notes how it is called, and leaves the work to the definition.
_PLATFORM = "planner"
_ATTENDS: ContextVar[set[AttendCall]] = ContextVar("nxdi_counted_attention")


def _note(call: AttendCall) -> str:
    _ATTENDS.get().add(call)
    return "it only looks on"


register("attend", _PLATFORM, Kernel("observer", attend_explicit, declines=_note))


class Role(Enum):
    """What a stretch of memory holds. WIDENED: weights as they are multiplied, on the chip."""

    WEIGHT = 1
    CACHE = 2
    WIDENED = 3


class GraphCounter:
    """Counts graphs of one model; the module of a phase is built once."""

    def __init__(self, app: NeuronApplicationBase) -> None:
        self._app = app
        self._models: dict[Phase, Any] = {}
        self._kinds: dict[Phase, list[tuple[int, int]]] = {}

    def model(self, phase: Phase) -> Any:
        """The module of one phase, with one rank's shapes, on the meta device."""
        if phase not in self._models:
            self._models[phase] = model = self._app.build(phase).to("meta")
            self._kinds[phase] = list(_layer_kinds(model))
        return self._models[phase]

    def count(self, spec: GraphSpec) -> Work:
        """The work of one rank in one step of the graph."""
        model = self.model(spec.phase)
        with torch.device("meta"):
            caches = self._app.program().make_caches(model)
            shapes = spec.input_shapes()
            inputs = {
                item.name: torch.empty(shapes[item.name], dtype=getattr(torch, item.dtype))
                for item in spec.inputs
            }
        tally = _Tally(tensors_of(model).values(), caches)
        _ATTENDS.set(tally.work.attend_calls)
        ranks = tensor_parallel(self._app.num_ranks)
        with torch.no_grad(), ranks, platform(_PLATFORM), tally:
            if model.composes:
                self._composed(tally, spec, inputs, caches)
            else:
                model.step(spec, inputs, caches)
        return tally.work

    def _composed(
        self, tally: _Tally, spec: GraphSpec, inputs: dict[str, Tensor], caches: list[Tensor]
    ) -> None:
        """A step with one layer of each kind, which counts for all of its kind."""
        model = self._models[spec.phase]
        x = model.embed(inputs)
        per_layer = len(caches) // len(model.layers)
        for index, count in self._kinds[spec.phase]:
            own = caches[index * per_layer : (index + 1) * per_layer]
            with tally.repeated(count):
                model.layer_step(model.layers[index], spec, x, inputs, own)
        model.head(model.last_hidden(x, inputs), inputs)


def _layer_kinds(model: Any) -> Iterator[tuple[int, int]]:
    """(the first layer of a kind, how many there are) for each kind of layer."""
    shapes = model.cache_shapes()
    per_layer = len(shapes) // len(model.layers)
    kinds: dict[object, list[int]] = {}
    for index, layer in enumerate(model.layers):
        own = tuple(shapes[index * per_layer : (index + 1) * per_layer])
        kinds.setdefault((structure(layer), own), []).append(index)
    for indices in kinds.values():
        yield indices[0], len(indices)


class _Tally(TorchDispatchMode):
    """Sees every operator of a step. Roles go with stretches of memory, so views keep them."""

    def __init__(self, weights: Iterable[Tensor], caches: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.work = Work()
        self._times = 1
        self._roles: dict[int, Role] = {}
        self._kept: list[Tensor] = []  # what has a role stays, lest another tensor get its place
        self._seen: set[tuple[int, int, int]] = set()
        for role, tensors in ((Role.WEIGHT, weights), (Role.CACHE, caches)):
            for tensor in tensors:
                self._give(tensor, role)

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """What is counted within the block counts `times` times."""
        self._times = times
        yield
        self._times = 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in _COLLECTIVES:
            self._collective(func, args, out)
        elif not func.is_view:
            self._compute(func.overloadpacket, args, out)
        return out

    def _collective(self, func: Any, args: Any, out: Tensor) -> None:
        op = func.overloadpacket.__name__
        whole = out if op == "all_gather" else args[0]
        self.work.collectives[Collective(op, whole.nbytes, args[-1])] += self._times

    def _compute(self, op: Any, args: Any, out: Any) -> None:
        tensors = [x for x in pytree.tree_leaves(args) if isinstance(x, Tensor)]
        if op in _PRODUCTS:
            left = _PRODUCTS[op]
            self._product(args[left], args[left + 1], out)
        if op in _LOOK_UPS:
            self._look_up(op, tensors[0], out)
            return
        if op in _WRITES and self._role(tensors[0]) is Role.CACHE:
            self.work.written_bytes += self._times * tensors[-1].nbytes
        else:
            for tensor in tensors:
                self._read(tensor)
        self._pass_on(tensors, out)

    def _product(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        flops = self._times * 2 * out.numel() * left.shape[-1]
        work = self.work
        work.num_products += self._times
        is_weight = [self._role(x) in (Role.WEIGHT, Role.WIDENED) for x in (left, right)]
        if not any(is_weight):
            work.attention_flops += flops
            return
        moved = sum(
            x.nbytes for x, known in zip((left, right), is_weight, strict=True) if not known
        )
        work.weight_flops += flops
        work.activation_bytes += self._times * (moved + out.nbytes)
        work.workspace_bytes = max(work.workspace_bytes, moved + out.nbytes)
        count = prod(out.shape[:-2])
        product = Product(out.shape[-2], left.shape[-1], out.shape[-1], left.dtype)
        work.products[product] += self._times * count

    def _look_up(self, op: Any, source: Tensor, out: Tensor) -> None:
        role = self._role(source)
        self._add(role, out.nbytes)
        if role is Role.WEIGHT and op is not _ATEN.embedding:
            self._give(out, Role.WIDENED)  # weights of the experts that were chosen

    def _read(self, tensor: Tensor) -> None:
        """Each stretch is read from memory once."""
        role = self._role(tensor)
        if role is None:
            return
        stored = [size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step]
        num_bytes = prod(stored) * tensor.itemsize
        stretch = self._place(tensor), int(tensor.storage_offset()), num_bytes
        if stretch not in self._seen:
            self._add(role, num_bytes)
            self._seen.add(stretch)

    def _pass_on(self, tensors: list[Tensor], out: Any) -> None:
        """A result made of weights alone is one; a cache that was written to is still a cache."""
        if not (isinstance(out, Tensor) and tensors):
            return
        roles = [self._role(tensor) for tensor in tensors]
        if all(role in (Role.WEIGHT, Role.WIDENED) for role in roles):
            self._give(out, Role.WIDENED)
        elif Role.CACHE in roles and _is_alike(out, tensors[roles.index(Role.CACHE)]):
            self._give(out, Role.CACHE)

    def _add(self, role: Role | None, num_bytes: int) -> None:
        if role is Role.WEIGHT:
            self.work.weight_bytes += self._times * num_bytes
        elif role is Role.CACHE:
            self.work.cache_bytes += self._times * num_bytes

    def _give(self, tensor: Tensor, role: Role) -> None:
        self._roles.setdefault(self._place(tensor), role)
        self._kept.append(tensor)

    def _role(self, tensor: Tensor) -> Role | None:
        return self._roles.get(self._place(tensor))

    @staticmethod
    def _place(tensor: Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)


def _is_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and other.is_contiguous()
