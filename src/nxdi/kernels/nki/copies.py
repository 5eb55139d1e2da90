"""Copies that kernels share."""

from __future__ import annotations

from typing import Any

import nki.isa as nisa
import nki.language as nl


def copy_out(dst: Any, src: Any, is_by_scalar: bool) -> None:
    """Copy from PSUM; gen2's scalar engine has no tensor_copy."""
    if is_by_scalar:
        nisa.activation(dst=dst, op=nl.copy, data=src)
    else:
        nisa.tensor_copy(dst=dst, src=src, engine=nisa.engine.vector)
