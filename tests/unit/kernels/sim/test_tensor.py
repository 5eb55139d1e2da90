"""Views, against those of NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nxdi.kernels import simulate
from sim_kernels import nl, random_array, stored

VIEWS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "slice": (lambda t: t[2:6, 1:4], lambda x: x[2:6, 1:4]),
    "step": (lambda t: t[:, :, 0:6:2], lambda x: x[:, :, 0:6:2]),
    "ds": (lambda t: t[nl.ds(4, 2), :, nl.ds(1, 3)], lambda x: x[4:6, :, 1:4]),
    "integer": (lambda t: t[:, 2], lambda x: x[:, 2]),
    "partition stays": (lambda t: t[3], lambda x: x[3:4]),
    "rank stays": (lambda t: t[:, 1, 2], lambda x: x[:, 1, 2:3]),
    "negative": (lambda t: t[:, -1, :-2], lambda x: x[:, -1, :-2]),
    "ellipsis": (lambda t: t[..., 2:4], lambda x: x[..., 2:4]),
    "permute": (lambda t: t.permute((0, 2, 1)), lambda x: x.transpose(0, 2, 1)),
    "reshape": (lambda t: t.reshape((8, 24)), lambda x: x.reshape(8, 24)),
    "split": (lambda t: t.reshape_dim(2, (2, 3)), lambda x: x.reshape(8, 4, 2, 3)),
    "flatten": (lambda t: t.flatten_dims(1, 2), lambda x: x.reshape(8, 24)),
    "expand": (lambda t: t.expand_dim(1), lambda x: x[:, None]),
    "squeeze": (lambda t: t.expand_dim(1).squeeze_dim(1), lambda x: x),
    "broadcast": (
        lambda t: t.expand_dim(1).broadcast(1, 3),
        lambda x: np.broadcast_to(x[:, None], (8, 3, 4, 6)),
    ),
    "select": (lambda t: t.select(1, 2), lambda x: x[:, 2]),
    "names": (
        lambda t: t.rearrange(("p", "a", ("b", "c")), ("p", "c", ("a", "b")), {"c": 3}),
        lambda x: x.reshape(8, 4, 2, 3).transpose(0, 3, 1, 2).reshape(8, 3, 8),
    ),
    "pattern": (lambda t: t.ap([[24, 8], [6, 2], [1, 6]], offset=6), lambda x: x[:, 1:3]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_selects_what_numpy_does(name: str) -> None:
    ours, theirs = VIEWS[name]

    def kernel(x: Any) -> Any:
        return stored(ours(nl.load(x)))

    x = random_array(8, 4, 6)
    result = simulate(kernel)(x)
    assert np.array_equal(result, np.ascontiguousarray(theirs(x)).reshape(result.shape))


def test_memory_drops_integer_dimensions() -> None:
    def kernel(x: Any) -> Any:
        assert x[1].shape == (4, 6)
        assert x[1, 2].shape == (6,)
        return stored(nl.load(x[1]))

    x = random_array(8, 4, 6)
    assert np.array_equal(simulate(kernel)(x), x[1])


def test_a_view_of_other_bits() -> None:
    def kernel(x: Any) -> Any:
        return stored(nl.load(x).view(nl.uint16))

    x = random_array(4, 6)
    assert np.array_equal(simulate(kernel)(x), x.view(np.uint16))
    with pytest.raises(ValueError, match="precise"):
        simulate(lambda x: stored(nl.load(x, dtype="bfloat16").view("uint16")), numerics="fp32")(x)


def test_views_say_what_they_are() -> None:
    def kernel(x: Any) -> Any:
        tile = nl.load(x)
        assert (tile.ndim, tile.size, tile.is_contiguous()) == (3, 192, True)
        assert not tile[:, :, 0:2].is_contiguous()
        assert tile[:, 1:3].get_pattern() == [[24, 8], [6, 2], [1, 6]]
        assert str(tile) == "float32[8x4x6] in sbuf"
        return x

    simulate(kernel)(random_array(8, 4, 6))
