"""The plan of a model as plain data, which `dataclasses.asdict` turns into JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CacheInfo:
    """`count` cache tensors of one shape on each rank."""

    count: int
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int


@dataclass(frozen=True)
class KernelInfo:
    """The kernel of one operation; `declined` gives the reason of each candidate before it.

    is_reference: it is no kernel, but the operation's definition; layers: the modules it serves.
    """

    op: str
    chosen: str
    is_reference: bool
    declined: dict[str, str]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class GraphInfo:
    """One graph: length in tokens, the shape of each input, what it returns, its kernels."""

    name: str
    phase: str
    batch_size: int
    length: int
    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    kernels: tuple[KernelInfo, ...]


@dataclass(frozen=True)
class NoOpInfo:
    """An option that was given and has no effect here."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True)
class GraphUse:
    """`num_steps` steps of one graph, which yield the new tokens `first_token` to `last_token`."""

    graph: str
    num_steps: int
    first_token: int
    last_token: int


@dataclass(frozen=True)
class RequestInfo:
    """The graphs that serve `num_rows` prompts of `prompt_len` tokens."""

    prompt_len: int
    new_tokens: int
    num_rows: int
    steps: tuple[GraphUse, ...]


@dataclass(frozen=True)
class ModelInfo:
    """What compiling and loading will make of a model; bytes are those of each rank, in order."""

    model: str
    architecture: str
    backend: str
    torch_dtype: str
    tp_degree: int
    num_parameters: int
    weight_bytes: tuple[int, ...]
    cache_bytes: int
    caches: tuple[CacheInfo, ...]
    notes: tuple[str, ...]
    no_op_options: tuple[NoOpInfo, ...]
    graphs: tuple[GraphInfo, ...]
    requests: tuple[RequestInfo, ...]
