"""Drawn calls of the gated MLP kernels."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch

from nki_calls import Drawn, normal
from nxdi.kernels.nki import load_kernels
from tolerances import NKI

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")


def draw_mlp(
    random: Random,
    rows: Sequence[int],
    tiles: Sequence[int],
    num_cores: int = 1,
    intermediates: Sequence[int] = (),
) -> Drawn:
    """x of one of `rows` tokens and 128 times one of `tiles` elements.

    Without `intermediates` to choose from, they are ragged or multiples of 128.
    """
    module = load_kernels("mlp_prefill")
    tokens, hidden = random.choice(rows), 128 * random.choice(tiles)
    sizes = intermediates or [random.randint(1, 300), 128 * random.randint(1, 2), 520]
    intermediate = random.choice(sizes)
    dtype = random.choice([torch.bfloat16, torch.float16])
    gamma = random.choice([None, normal(random, 1, hidden, dtype=dtype)])
    weights = [
        normal(random, *shape, dtype=dtype, scale=shape[0] ** -0.5)
        for shape in [(hidden, intermediate)] * 2 + [(intermediate, hidden)]
    ]
    x = normal(random, tokens, hidden, dtype=dtype, scale=2.0)
    activation = random.choice(ACTIVATIONS)
    call = module.Call(
        tuple(x.shape),
        tuple(weights[0].shape),
        tuple(weights[2].shape),
        dtype,
        None if gamma is None else tuple(gamma.shape),
        activation,
        num_cores,
    )
    return Drawn(call, (x, *weights, gamma), NKI[dtype], {"activation": activation})


def empty_mlp(
    rows: int, hidden: int, intermediate: int, with_gamma: bool = False
) -> list[torch.Tensor | None]:
    """The tensors of a call, without elements."""
    shapes = [(rows, hidden), (hidden, intermediate), (hidden, intermediate)]
    shapes += [(intermediate, hidden), (1, hidden)]
    tensors: list[torch.Tensor | None] = [
        torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes
    ]
    return tensors if with_gamma else [*tensors[:4], None]
