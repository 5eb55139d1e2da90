"""What a graph's HLO text says: collectives, state, operations, arithmetic and memory traffic."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from nxdi.tools.lowering.lower import Lowered

_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT\s+)?%?[\w.\-]+ = (?P<type>\(.*?\)|\S+) (?P<op>[\w\-]+)\((?P<rest>.*)$"
)
_SHAPE = re.compile(r"\b(pred|[subf]\d+|bf16)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(\{\{.*?\}\}|\{\})")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
_SIZES = {"pred": 1, "bf16": 2}


@dataclass(frozen=True)
class Collective:
    op: str
    groups: str


@dataclass(frozen=True)
class Summary:
    """flops: of matrix products; bytes: of parameters read once and results written once."""

    graph: str
    num_instructions: int
    num_parameters: int
    collectives: tuple[tuple[Collective, int], ...]
    aliased_caches: int
    ops: tuple[tuple[str, int], ...]
    types: tuple[str, ...]
    flops: int
    num_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "graph": self.graph,
            "instructions": self.num_instructions,
            "parameters": self.num_parameters,
            "collectives": [
                {"op": c.op, "replica_groups": c.groups, "count": n} for c, n in self.collectives
            ],
            "aliased_caches": self.aliased_caches,
            "ops": dict(self.ops),
            "types": list(self.types),
            "flops": self.flops,
            "bytes": self.num_bytes,
        }


def summarise(lowered: Lowered) -> Summary:
    """Read the HLO text of one graph: its entry computation, not the reducers it calls."""
    ops: Counter[str] = Counter()
    collectives: Counter[Collective] = Counter()
    flops = num_bytes = 0
    for line in lowered.text.partition("\nENTRY ")[2].splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        op, rest, shapes = match["op"], match["rest"], _SHAPE.findall(match["type"])
        ops[op] += 1
        if op in _COLLECTIVES:
            groups = _GROUPS.search(rest)
            collectives[Collective(op, groups[1] if groups else "{}")] += 1
        elif op == "dot":
            flops += _dot_flops(_dims(shapes[0][1]), rest)
        if op == "parameter" or "ROOT" in line:
            num_bytes += sum(_bytes(dtype, dims) for dtype, dims in shapes)
    return Summary(
        graph=lowered.spec.name,
        num_instructions=sum(ops.values()),
        num_parameters=len(lowered.parameters),
        collectives=tuple(sorted(collectives.items(), key=lambda item: str(item[0]))),
        aliased_caches=len(lowered.aliases),
        ops=tuple(ops.most_common()),
        types=tuple(sorted({dtype for dtype, _ in _SHAPE.findall(lowered.text)})),
        flops=flops,
        num_bytes=num_bytes,
    )


def _dims(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


def _bytes(dtype: str, dims: str) -> int:
    size = _SIZES.get(dtype) or int(re.sub(r"\D", "", dtype)) // 8
    return size * math.prod(_dims(dims))


def _dot_flops(result: list[int], rest: str) -> int:
    """Two per multiply-and-add: the size of the result times that of the contracted dimensions."""
    operand = _dims(_SHAPE.findall(rest)[0][1])
    contracted = _CONTRACTED.search(rest)
    dims = _dims(contracted[1]) if contracted else []
    return 2 * math.prod(result) * math.prod(operand[dim] for dim in dims)
