from __future__ import annotations

from random import Random

import pytest
import torch

from nki_calls import GENERATIONS, Drawn, check_drawn, check_portable, normal
from nxdi.kernels import simulate
from nxdi.kernels.nki import load_kernels
from tolerances import NKI

kernels = load_kernels("moe_decode")
BF16 = torch.bfloat16


def draw(random: Random) -> Drawn:
    """One choice in six is none."""
    num_tokens, top_k, num_experts = random.randint(1, 3), random.randint(1, 3), 4
    hidden, inner = random.choice([20, 128, 200, 384]), random.choice([7, 96, 150, 256])
    dtype = random.choice([torch.bfloat16, torch.float16, torch.float32])
    x = normal(random, num_tokens, hidden, dtype=dtype)
    gate_up = normal(random, num_experts, hidden, 2 * inner, dtype=dtype, scale=hidden**-0.5)
    down = normal(random, num_experts, inner, hidden, dtype=dtype, scale=inner**-0.5)
    choices = [random.randint(-1, 4) for _ in range(num_tokens * top_k)]
    experts = torch.tensor(choices, dtype=torch.int32).clamp(max=3).view(num_tokens, top_k)
    experts[0, 0] = 2
    weights = normal(random, num_tokens, top_k)
    tensors = x, gate_up, down, weights, experts
    call = kernels.Call(*(tuple(t.shape) for t in (x, gate_up, down, experts)), dtype)
    return Drawn(call, tensors, NKI[dtype])


@pytest.mark.parametrize("target", GENERATIONS)
def test_it_equals_its_reference(target: str) -> None:
    check_drawn(kernels, kernels.moe_decode, draw, target)


def test_weights_that_take_several_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(0)
    monkeypatch.setattr(kernels, "CHUNK", 2048)
    check_drawn(kernels, kernels.moe_decode, lambda _: several_loads(random), "gen3", 1)


def several_loads(random: Random) -> Drawn:
    x, down = normal(random, 1, 512), normal(random, 2, 256, 512, scale=1 / 16)
    gate_up = normal(random, 2, 512, 512, scale=1 / 16)
    experts = torch.tensor([[1]], dtype=torch.int32)
    call = kernels.Call((1, 512), (2, 512, 512), (2, 256, 512), (1, 1), torch.float32)
    return Drawn(call, (x, gate_up, down, torch.ones(1, 1), experts), NKI[torch.float32])


SHAPES = (2, 128), (4, 128, 96), (4, 48, 128), (2, 2)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (kernels.Call((128,), *SHAPES[1:], BF16), "the kernel takes"),
        (kernels.Call(SHAPES[0], (4, 128, 48), *SHAPES[2:], BF16), "do not fit each other"),
        (kernels.Call(*SHAPES[:3], (3, 2), BF16), "do not fit each other"),
        (kernels.Call((200, 128), *SHAPES[1:3], (200, 2), BF16), "more than 256"),
        (kernels.Call((2, 131), (4, 131, 96), (4, 48, 131), (2, 2), BF16), "no divisor"),
        (kernels.Call((2, 128), (4, 128, 278), (4, 139, 128), (2, 2), BF16), "no divisor"),
        (kernels.Call(*SHAPES, torch.int8), "no float"),
        (kernels.Call((2, 128), (4, 128, 20480), (4, 10240, 128), (2, 2), BF16), "a row"),
    ],
)
def test_it_says_what_it_does_not_serve(call: object, reason: str) -> None:
    assert reason in kernels.supports(call)


@pytest.mark.parametrize(("hidden", "inner"), [(256, 9216), (18432, 64)])
def test_the_widest_rows_it_serves_fit_every_machine(hidden: int, inner: int) -> None:
    simulation = simulate(kernels.moe_decode, target="gen2", numerics="shapes")
    x = torch.empty(1, hidden, dtype=BF16, device="meta")
    gate_up, down = x.new_empty(2, hidden, 2 * inner), x.new_empty(2, inner, hidden)
    choices = x.new_empty(1, 2)
    call = kernels.Call(x.shape, gate_up.shape, down.shape, choices.shape, BF16)
    assert kernels.supports(call) is None
    simulation(x, gate_up, down, choices.float(), choices.int())


def test_it_is_portable() -> None:
    check_portable(kernels)
