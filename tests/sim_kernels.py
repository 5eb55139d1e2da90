"""What several tests of the kernel simulator use: `nl`, `nisa`, and tiles with known contents."""

from __future__ import annotations

from typing import Any

import numpy as np

from nxdi.kernels import nki_modules

with nki_modules():
    import nki
    import nki.isa as nisa
    import nki.language as nl

__all__ = ["filled", "nisa", "nki", "nl", "stored"]


def filled(
    partitions: int, *free: int, dtype: Any = None, buffer: Any = None, value: float = 1
) -> Any:
    """A tile that is written."""
    tile = nl.ndarray((partitions, *free), dtype or nl.float32, buffer=buffer or nl.sbuf)
    nisa.memset(tile, value)
    return tile


def stored(tile: Any) -> Any:
    """A tile as an output of the kernel."""
    out = nl.ndarray(tile.shape, tile.dtype, buffer=nl.shared_hbm)
    if tile.buffer == nl.psum:
        tile = nl.copy(tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


def random_array(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
