"""NkiTensor: a view of a storage, as an offset and a step per dimension."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

from nxdi.kernels.sim.dtypes import DType, as_dtype
from nxdi.kernels.sim.memory import MemoryRegion, Region, Storage
from nxdi.kernels.sim.registers import VirtualRegister, value_of
from nxdi.kernels.sim.rules import require


@dataclass(frozen=True)
class DynamicSlice:
    """`nl.ds(start, size)`."""

    start: Any
    size: int


@dataclass(frozen=True)
class Indirect:
    """Offsets known only at run time: `step` elements times an index.

    `vector` has one index per row of the pattern's first dimension; `scalar` one for all.
    """

    step: int
    limit: int
    vector: NkiTensor | None = None
    scalar: NkiTensor | VirtualRegister | None = None


@dataclass(frozen=True, eq=False)
class NkiTensor:
    """Elements of a storage. `offset` and `steps` count elements of `dtype`."""

    storage: Storage
    dtype: DType
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    offset: int = 0
    index: Indirect | None = None

    @property
    def buffer(self) -> MemoryRegion:
        return self.storage.allocation.buffer

    @property
    def name(self) -> str:
        return self.storage.allocation.name

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def strides(self) -> tuple[int, ...]:
        return self.steps

    @property
    def is_on_chip(self) -> bool:
        return self.buffer.is_on_chip

    @property
    def free_size(self) -> int:
        """Elements per partition."""
        return prod(self.shape[1:])

    @property
    def free_bytes(self) -> int:
        return self.free_size * self.dtype.itemsize

    @property
    def start_partition(self) -> int:
        return self.offset // self._row_elements()

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.dtype.name}[{shape}] in {self.buffer.name}"

    def _row_elements(self) -> int:
        return self.storage.allocation.row_bytes // self.dtype.itemsize

    def region(self) -> Region:
        """The rectangle of the storage that the view lies in."""
        width = self.dtype.itemsize
        row = max(1, self._row_elements())
        if self.index is not None:
            return (0, 1 << 62, 0, self.storage.allocation.row_bytes)
        first, column = divmod(self.offset, row)
        rows = columns = 0
        for step, number in zip(self.steps, self.shape, strict=True):
            if step >= row and step % row == 0:
                rows += (number - 1) * (step // row)
            else:
                columns += (number - 1) * step
        if column + columns < row:
            return (first, first + rows + 1, column * width, (column + columns + 1) * width)
        return (first, (self.offset + rows * row + columns) // row + 1, 0, row * width)

    def is_contiguous(self) -> bool:
        """Whether the elements of each partition (on chip), or all of them, follow each other."""
        expected = 1
        start = 1 if self.is_on_chip else 0
        pairs = zip(reversed(self.shape[start:]), reversed(self.steps[start:]), strict=True)
        for number, step in pairs:
            if number > 1 and step != expected:
                return False
            expected *= number
        return True

    def get_pattern(self) -> list[list[int]]:
        return [[step, number] for step, number in zip(self.steps, self.shape, strict=True)]

    # Indexing

    def __getitem__(self, key: Any) -> NkiTensor:
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in [item for item in keys if item is Ellipsis]:
            at = next(i for i, item in enumerate(keys) if item is Ellipsis)
            keys[at : at + 1] = [slice(None)] * (self.ndim - len(keys) + 1)
        require(
            len(keys) <= self.ndim,
            "index-range",
            f"{len(keys)} indices for {self}; give at most {self.ndim}",
        )
        keys += [slice(None)] * (self.ndim - len(keys))
        view, kept = self, []
        for dim, item in enumerate(keys):
            view, is_kept = view._narrow(dim, item)
            kept.append(is_kept)
        return view._drop(kept)

    def _narrow(self, dim: int, item: Any) -> tuple[NkiTensor, bool]:
        """One dimension reduced to `item`, with whether it stays a dimension."""
        if isinstance(item, VirtualRegister):
            return self._at_register(dim, item, 1), False
        if isinstance(item, DynamicSlice):
            if isinstance(item.start, VirtualRegister):
                return self._at_register(dim, item.start, item.size), True
            item = slice(item.start, item.start + item.size)
        if item == slice(None):
            return self, True
        if isinstance(item, slice):
            start = item.start if item.start is not None else 0
            stop = item.stop if item.stop is not None else self.shape[dim]
            start, stop = (v + self.shape[dim] if v < 0 else v for v in (start, stop))
            return self.slice(dim, start, stop, item.step or 1), True
        at = int(item) + (self.shape[dim] if item < 0 else 0)
        return self.slice(dim, at, at + 1), False

    def _drop(self, kept: list[bool]) -> NkiTensor:
        """Without the integer-indexed dimensions; on chip at least [partitions, free] stays."""
        if all(kept):
            return self
        if self.is_on_chip:
            kept[0] = True
            if sum(kept) < 2:
                kept[-1] = True
        pairs = [(n, s) for n, s, keep in zip(self.shape, self.steps, kept, strict=True) if keep]
        shape, steps = tuple(n for n, _ in pairs), tuple(s for _, s in pairs)
        return replace(self, shape=shape or (1,), steps=steps or (1,))

    def _at_register(self, dim: int, register: VirtualRegister, size: int) -> NkiTensor:
        shape = (*self.shape[:dim], size, *self.shape[dim + 1 :])
        index = Indirect(self.steps[dim], self.shape[dim], scalar=register)
        return replace(self, shape=shape, index=index)

    def slice(self, dim: int, start: int, end: int, step: int = 1) -> NkiTensor:
        size = self.shape[dim]
        require(
            0 <= start < end <= size and step > 0,
            "index-range",
            f"{start}:{end}:{step} is not a part of dimension {dim} of {self}, which has {size}",
        )
        number = -(-(end - start) // step)
        return replace(
            self,
            shape=(*self.shape[:dim], number, *self.shape[dim + 1 :]),
            steps=(*self.steps[:dim], self.steps[dim] * step, *self.steps[dim + 1 :]),
            offset=self.offset + start * self.steps[dim],
        )

    def select(self, dim: int, index: Any) -> NkiTensor:
        if isinstance(index, NkiTensor):
            moved = replace(self, index=Indirect(self.steps[dim], self.shape[dim], scalar=index))
            return moved.slice(dim, 0, 1).squeeze_dim(dim)
        return self.slice(dim, index, index + 1).squeeze_dim(dim)

    def vector_select(self, dim: int, vector_offset: NkiTensor) -> NkiTensor:
        rows = vector_offset.shape[0]
        rest = [d for d in range(self.ndim) if d != dim]
        index = Indirect(self.steps[dim], self.shape[dim], vector=vector_offset)
        return replace(
            self,
            shape=(rows, *(self.shape[d] for d in rest)),
            steps=(0, *(self.steps[d] for d in rest)),
            index=index,
        )

    def indirect(self, index: NkiTensor, num_elem: int | None = None) -> NkiTensor:
        return self.vector_select(0, index)

    # Views

    def permute(self, dims: tuple[int, ...]) -> NkiTensor:
        require(
            sorted(dims) == list(range(self.ndim)) and (not self.is_on_chip or dims[0] == 0),
            "reshape-size",
            f"permute{dims} of {self} must name every dimension once, partitions first",
        )
        return replace(
            self,
            shape=tuple(self.shape[d] for d in dims),
            steps=tuple(self.steps[d] for d in dims),
        )

    def broadcast(self, dim: int, size: int) -> NkiTensor:
        require(
            self.shape[dim] == 1 and not (self.is_on_chip and dim == 0),
            "broadcast-dimension",
            f"dimension {dim} of {self} cannot be repeated; it must be free and of size 1",
        )
        shape = (*self.shape[:dim], size, *self.shape[dim + 1 :])
        return replace(self, shape=shape, steps=(*self.steps[:dim], 0, *self.steps[dim + 1 :]))

    def expand_dim(self, dim: int) -> NkiTensor:
        shape, steps = list(self.shape), list(self.steps)
        shape.insert(dim, 1)
        steps.insert(dim, 0)
        return replace(self, shape=tuple(shape), steps=tuple(steps))

    def squeeze_dim(self, dim: int) -> NkiTensor:
        require(self.shape[dim] == 1, "reshape-size", f"dimension {dim} of {self} is not of size 1")
        kept = [d != dim for d in range(self.ndim)]
        return self._drop(kept)

    def reshape_dim(self, dim: int, shape: tuple[int, ...]) -> NkiTensor:
        require(
            prod(shape) == self.shape[dim],
            "reshape-size",
            f"dimension {dim} of {self} has {self.shape[dim]} elements, {shape} {prod(shape)}",
        )
        steps = [self.steps[dim] * prod(shape[i + 1 :]) for i in range(len(shape))]
        return replace(
            self,
            shape=(*self.shape[:dim], *shape, *self.shape[dim + 1 :]),
            steps=(*self.steps[:dim], *steps, *self.steps[dim + 1 :]),
        )

    def flatten_dims(self, start_dim: int, end_dim: int) -> NkiTensor:
        inner = list(range(start_dim, end_dim + 1))
        fits = all(self.steps[a] == self.steps[b] * self.shape[b] for a, b in pairwise(inner))
        require(fits, "reshape-size", f"dimensions {inner} of {self} do not follow each other")
        number = prod(self.shape[d] for d in inner)
        return replace(
            self,
            shape=(*self.shape[:start_dim], number, *self.shape[end_dim + 1 :]),
            steps=(*self.steps[:start_dim], self.steps[end_dim], *self.steps[end_dim + 1 :]),
        )

    def reshape(self, shape: tuple[int, ...]) -> NkiTensor:
        first = 1 if self.is_on_chip else 0
        fits = (
            prod(shape) == self.size
            and tuple(shape[:first]) == self.shape[:first]
            and (self.is_contiguous() or tuple(shape) == self.shape)
        )
        require(
            fits,
            "reshape-size",
            f"{self} cannot be seen as {tuple(shape)}; keep its partitions and elements, and "
            "reshape before slicing",
        )
        free = shape[first:]
        steps = tuple(prod(free[i + 1 :]) for i in range(len(free)))
        return replace(self, shape=tuple(shape), steps=(*self.steps[:first], *steps))

    def rearrange(
        self,
        src_pattern: tuple[Any, ...],
        dst_pattern: tuple[Any, ...],
        fixed_sizes: dict[str, int] | None = None,
    ) -> NkiTensor:
        """Dimensions by name, as in einops: a tuple of names is one dimension made of several."""
        view, names, sizes = self, list[str](), dict(fixed_sizes or {})
        for item in src_pattern:
            group = item if isinstance(item, tuple) else (item,)
            known = prod(sizes[name] for name in group if name in sizes)
            total = view.shape[len(names)]
            shape = tuple(sizes.get(name, total // known) for name in group)
            view = view.reshape_dim(len(names), shape)
            names += group
        groups = [item if isinstance(item, tuple) else (item,) for item in dst_pattern]
        view = view.permute(tuple(names.index(name) for group in groups for name in group))
        for dim, group in enumerate(groups):
            view = view.flatten_dims(dim, dim + len(group) - 1)
        return view

    def is_indirect(self) -> bool:
        return self.index is not None

    def ap(
        self,
        pattern: list[list[int]],
        offset: int | None = None,
        scalar_offset: NkiTensor | VirtualRegister | None = None,
        vector_offset: NkiTensor | None = None,
        indirect_dim: int = 0,
        dtype: Any = None,
    ) -> NkiTensor:
        """An access pattern of [step, number] pairs over the storage, from `offset` on."""
        require(
            len(pattern) <= 5,
            "pattern-rank",
            f"a pattern of {len(pattern)} dimensions; at most 5, merge or loop over the others",
        )
        base = self.view(dtype) if dtype is not None else self
        index = None
        if scalar_offset is not None or vector_offset is not None:
            step = prod(base.shape[indirect_dim + 1 :])
            index = Indirect(step, base.shape[indirect_dim], vector_offset, scalar_offset)
        steps = tuple(int(step) for step, _ in pattern)
        shape = tuple(int(number) for _, number in pattern)
        start = base.offset + (offset or 0)
        view = replace(base, shape=shape, steps=steps, offset=start, index=index)
        if vector_offset is not None:
            view = replace(view, steps=(0, *steps[1:]))
        last = start + sum(s * (n - 1) for s, n in zip(view.steps, shape, strict=True))
        total = self.storage.allocation.partitions * view._row_elements()
        require(
            start >= 0 and last < total,
            "index-range",
            f"the pattern reaches element {last} of {self}, whose storage has {total}",
        )
        return view

    def view(self, dtype: Any) -> NkiTensor:
        """The same bytes as elements of another type."""
        new = as_dtype(dtype)
        old, size = self.dtype.itemsize, new.itemsize
        last = self.shape[-1] * old
        is_ok = self.steps[-1] == 1 and last % size == 0 and (self.offset * old) % size == 0
        require(
            old == size or is_ok,
            "reinterpret-size",
            f"{self} has {last} bytes in its last dimension, not a number of {new}",
        )
        if old == size:
            return replace(self, dtype=new)
        steps = tuple(step * old // size for step in self.steps[:-1])
        shape = (*self.shape[:-1], last // size)
        return replace(
            self, dtype=new, shape=shape, steps=(*steps, 1), offset=self.offset * old // size
        )

    reinterpret_cast = view


def resolved(tensor: NkiTensor) -> NkiTensor:
    """The view with a register's value added to its offset; other views as they are."""
    index = tensor.index
    if index is None or not isinstance(index.scalar, VirtualRegister):
        return tensor
    at = value_of(index.scalar)
    require(
        0 <= at < index.limit, "indirect-range", f"register value {at} is not in 0..{index.limit}"
    )
    remaining = replace(index, scalar=None) if index.vector is not None else None
    return replace(tensor, offset=tensor.offset + at * index.step, index=remaining)
