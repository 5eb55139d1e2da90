"""Operators and activation functions of `nki.language`, computed in float32.

An operator is both a tag (`op=nl.add`) and a function on tiles (`nl.add(a, b)`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nxdi.kernels.sim.dtypes import Array
from nxdi.kernels.sim.rules import require


@dataclass(frozen=True, eq=False)
class Op:
    """One operator. `kind` is "arithmetic", "bitwise" or "activation"."""

    name: str
    kind: str
    arity: int
    compute: Callable[..., Any]
    # Inputs that the scalar engine takes; with `is_magnitude`, of their absolute values, or 0.
    domain: tuple[float, float] | None = None
    is_magnitude: bool = False

    def __call__(self, *operands: Any, dtype: Any = None) -> Any:
        from nxdi.kernels.sim.language.elementwise import apply

        return apply(self, operands, dtype)

    def __repr__(self) -> str:
        return f"nl.{self.name}"

    def outside(self, values: Array) -> int:
        """How many finite `values` the scalar engine is not specified for."""
        if self.domain is None:
            return 0
        low, high = self.domain
        sizes = np.abs(values) if self.is_magnitude else values
        return int(np.count_nonzero(np.isfinite(values) & ((sizes < low) | (sizes > high))))


def _erf(x: Array) -> Array:
    values: Array = torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    return values


def _sigmoid(x: Array) -> Any:
    return 1 / (1 + np.exp(-x))


def _gelu(x: Array) -> Any:
    return 0.5 * x * (1 + _erf(x * np.float32(math.sqrt(0.5))))


def _gelu_slope(x: Array) -> Any:
    density = np.exp(-0.5 * x * x) * np.float32(1 / math.sqrt(2 * math.pi))
    return 0.5 * (1 + _erf(x * np.float32(math.sqrt(0.5)))) + x * density


def _gelu_tanh(x: Array) -> Any:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


def _gelu_sigmoid(x: Array) -> Any:
    return x * _sigmoid(np.float32(1.702) * x)


def _gelu_sigmoid_slope(x: Array) -> Any:
    gate = _sigmoid(np.float32(1.702) * x)
    return gate + np.float32(1.702) * x * gate * (1 - gate)


def _silu_slope(x: Array) -> Any:
    gate = _sigmoid(x)
    return gate * (1 + x * (1 - gate))


def _softplus(x: Array) -> Any:
    return np.logaddexp(x, np.float32(0))


def _compare(compute: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: compute(x, y).astype(np.float32)


_ARITHMETIC: dict[str, tuple[int, Callable[..., Any]]] = {
    "add": (2, np.add),
    "subtract": (2, np.subtract),
    "multiply": (2, np.multiply),
    "divide": (2, np.divide),
    "maximum": (2, np.maximum),
    "minimum": (2, np.minimum),
    "abs_max": (2, lambda x, y: np.maximum(np.abs(x), np.abs(y))),
    "abs_min": (2, lambda x, y: np.minimum(np.abs(x), np.abs(y))),
    "power": (2, np.power),
    "bypass": (2, lambda x, y: x),
    "fmod": (2, np.fmod),
    "mod": (2, np.mod),
    "equal": (2, _compare(np.equal)),
    "not_equal": (2, _compare(np.not_equal)),
    "less": (2, _compare(np.less)),
    "less_equal": (2, _compare(np.less_equal)),
    "greater": (2, _compare(np.greater)),
    "greater_equal": (2, _compare(np.greater_equal)),
    "logical_and": (2, _compare(np.logical_and)),
    "logical_or": (2, _compare(np.logical_or)),
    "logical_xor": (2, _compare(np.logical_xor)),
}
_BITWISE: dict[str, tuple[int, Callable[..., Any]]] = {
    "bitwise_and": (2, np.bitwise_and),
    "bitwise_or": (2, np.bitwise_or),
    "bitwise_xor": (2, np.bitwise_xor),
    "left_shift": (2, np.left_shift),
    "right_shift": (2, np.right_shift),
    "invert": (1, np.invert),
}
_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "copy": lambda x: x,
    "square": np.square,
    "abs": np.abs,
    "negative": np.negative,
    "sign": np.sign,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "prelu": lambda x, slope=0.0: np.where(x > 0, x, slope * x),
    "gelu": _gelu,
    "gelu_dx": _gelu_slope,
    "gelu_apprx_tanh": _gelu_tanh,
    "gelu_apprx_sigmoid": _gelu_sigmoid,
    "gelu_apprx_sigmoid_dx": _gelu_sigmoid_slope,
    "silu": lambda x: x * _sigmoid(x),
    "silu_dx": _silu_slope,
    "softplus": _softplus,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "erf": _erf,
    "erf_dx": lambda x: np.float32(2 / math.sqrt(math.pi)) * np.exp(-x * x),
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "arctan": np.arctan,
    "ceil": np.ceil,
    "floor": np.floor,
    "trunc": np.trunc,
    "logical_not": lambda x: (x == 0).astype(np.float32),
}
# Source: table of activation functions in the nki.api reference.
_DOMAINS = {
    "log": (2.0**-64, 2.0**64, False),
    "sqrt": (2.0**-116, 2.0**118, False),
    "rsqrt": (2.0**-87, 2.0**97, False),
    "reciprocal": (2.0**-42, 2.0**42, True),
    "sin": (-math.pi, math.pi, False),
}


def _all_operators() -> dict[str, Op]:
    found = {n: Op(n, "arithmetic", arity, f) for n, (arity, f) in _ARITHMETIC.items()}
    found |= {n: Op(n, "bitwise", arity, f) for n, (arity, f) in _BITWISE.items()}
    for name, compute in _ACTIVATIONS.items():
        low, high, is_magnitude = _DOMAINS.get(name, (0.0, 0.0, False))
        domain = (low, high) if name in _DOMAINS else None
        found[name] = Op(name, "activation", 1, compute, domain, is_magnitude)
    return found


OPS = _all_operators()
# NumPy's names for the same operators.
_SYNONYMS = {"max": "maximum", "amax": "maximum", "min": "minimum", "amin": "minimum"}
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add.reduce,
    "subtract": np.subtract.reduce,
    "multiply": np.multiply.reduce,
    "maximum": np.maximum.reduce,
    "minimum": np.minimum.reduce,
    "abs_max": lambda x, **how: np.maximum.reduce(np.abs(x), **how),
    "bitwise_and": np.bitwise_and.reduce,
    "bitwise_or": np.bitwise_or.reduce,
    "bitwise_xor": np.bitwise_xor.reduce,
}
REDUCTION_START = {"add": 0.0, "multiply": 1.0, "maximum": -np.inf, "minimum": np.inf}


def as_op(spec: Any, *allowed: str) -> Op:
    """The operator that `spec` is or names; with `allowed`, one of those or of those kinds."""
    name = spec.name if isinstance(spec, Op) else getattr(spec, "__name__", str(spec))
    name = _SYNONYMS.get(name, name)
    require(name in OPS, "op-known", f"{spec!r} is not an operator; use one of nki.language")
    op = OPS[name]
    is_allowed = not allowed or name in allowed or op.kind in allowed
    require(is_allowed, "op-known", f"{op} is not an operator here; use {' or '.join(allowed)}")
    return op
