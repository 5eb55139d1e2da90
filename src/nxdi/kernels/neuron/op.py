"""How an NKI kernel becomes an operator of torch and a candidate of the registry.

`nxdi_nki::<name>` has the signature of the kernel's reference, which computes it on a CPU and gives
the shape of its result while tracing; on a device the kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload

from nxdi.kernels import nki
from nxdi.kernels.registry import Kernel

NAMESPACE = "nxdi_nki"


@cache
def load_op(name: str) -> OpOverload:
    """The operator `nxdi_nki::<name>` of the kernel `name` in `nxdi.kernels.nki.<name>`."""
    module = nki.load_kernels(name)
    made = torch.library.custom_op(f"{NAMESPACE}::{name}", module.reference, mutates_args=())
    made.register_fake(module.reference)
    if nki.has_compiler():
        made.register_kernel("xla", getattr(module, name))
    op: OpOverload = getattr(getattr(torch.ops, NAMESPACE), name).default
    return op


def nki_kernel(
    name: str,
    run: Callable[..., Any],
    declines: Callable[[Any], str | None],
    options: tuple[str, ...],
    meant_for: Callable[[Any], bool],
) -> Kernel:
    """The kernel `name` as a candidate, where the Neuron SDK is installed.

    run: calls the operator. declines: what the kernel's own `supports` says of a call.
    options, meant_for: see `Kernel`.
    """

    def declines_here(call: Any) -> str | None:
        return missing_compiler() or declines(call)

    return Kernel(f"{NAMESPACE}::{name}", run, declines_here, options=options, meant_for=meant_for)


def missing_compiler() -> str | None:
    """Why kernels cannot be compiled here, or None."""
    return None if nki.has_compiler() else "the Neuron SDK's nki is not installed"
