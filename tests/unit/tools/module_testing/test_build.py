from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxdi.errors import ConfigError, ShapeError, WeightError
from nxdi.modules.norm import RMSNorm
from nxdi.parallel_layers import mappings
from nxdi.parallel_layers.layers import (
    ColumnParallelLinear,
    ParallelEmbedding,
    RowParallelLinear,
    SPMDRank,
)
from nxdi.parallel_layers.parallel_state import get_tensor_model_parallel_group
from nxdi.runtime.checkpoint import write_safetensors
from nxdi.utils.testing import build_function, build_module, validate_accuracy
from tolerances import SUM_ORDER_FP32

CLOSE = {"rtol": SUM_ORDER_FP32, "atol": SUM_ORDER_FP32}
X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))


class Mlp(nn.Module):
    """Of parallel layers, or of torch's."""

    def __init__(self, is_parallel: bool = True, width: int = 16) -> None:
        super().__init__()
        if is_parallel:
            self.up: nn.Module = ColumnParallelLinear(8, width, gather_output=False)
            self.down: nn.Module = RowParallelLinear(width, 8, input_is_parallel=True)
        else:
            self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.up(x)))
        return y


def twin(make: Callable[[], nn.Module]) -> nn.Module:
    """A module with the values torch gives it after seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@pytest.mark.parametrize("tp_degree", [1, 2, 4])
def test_ranks_compute_what_one_module_computes(tp_degree: int) -> None:
    weights = {name: torch.randn_like(t) for name, t in Mlp(False).state_dict().items()}
    whole = Mlp(False)
    whole.load_state_dict(weights)
    built = build_module(Mlp, [(X,)], tp_degree=tp_degree, state_dict=weights)
    validate_accuracy(built, [(X,), (2 * X,)], cpu_callable=whole, assert_close_kwargs=CLOSE)


@pytest.mark.parametrize("tp_degree", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_compiled_module(tp_degree: int) -> None:
    built = build_module(Mlp, [(X,)], tp_degree=tp_degree, backend="cpu")
    whole = twin(lambda: Mlp(False))
    validate_accuracy(built, [(X,), (2 * X,)], cpu_callable=whole, assert_close_kwargs=CLOSE)


@pytest.mark.parametrize("tp_degree", [1, 2])
def test_weights_are_by_default_those_of_a_twin_with_seed_0(tp_degree: int) -> None:
    state = torch.random.get_rng_state()
    built = build_module(Mlp, [(X,)], {"width": 12}, tp_degree=tp_degree)
    whole = twin(lambda: Mlp(False, 12))
    assert {name: t.shape for name, t in built.weights.items()} == {
        name: t.shape for name, t in whole.state_dict().items()
    }
    validate_accuracy(built, [(X,)], cpu_callable=whole, assert_close_kwargs=CLOSE)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("tp_degree", [1, 2])
def test_an_embedding_with_ranks_and_a_norm(tp_degree: int) -> None:
    class Embedded(nn.Module):
        def __init__(self, is_parallel: bool = True) -> None:
            super().__init__()
            self.embed = (ParallelEmbedding if is_parallel else nn.Embedding)(10, 8)
            self.norm = (RMSNorm if is_parallel else partial(nn.RMSNorm, eps=1e-6))(8)

        def forward(self, ids: Tensor) -> Tensor:
            y: Tensor = self.norm(self.embed(ids))
            return y

    ids = torch.arange(6).view(2, 3)
    built = build_module(Embedded, [(ids,)], tp_degree=tp_degree)
    whole = twin(lambda: Embedded(False))
    validate_accuracy(built, [(ids,)], cpu_callable=whole, assert_close_kwargs=CLOSE)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "folder"])
def test_weights_from_a_file(name: str, tmp_path: Path) -> None:
    whole, path = Mlp(False), tmp_path / name
    if name == "w.pt":
        torch.save(whole.state_dict(), path)
    elif name == "w.safetensors":
        write_safetensors(path, whole.state_dict())
    else:
        path.mkdir()
        write_safetensors(path / "model.safetensors", whole.state_dict())
    built = build_module(Mlp, [(X,)], tp_degree=2, checkpoint_path=path)
    validate_accuracy(built, [(X,)], cpu_callable=whole, assert_close_kwargs=CLOSE)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_a_function_with_a_collective(backend: str) -> None:
    def total(x: Tensor) -> Tensor:
        return mappings.reduce_from_tensor_model_parallel_region(
            x, get_tensor_model_parallel_group()
        )

    # The group is read where a module is built; in a plain function it is that of one rank.
    built = build_function(total, [(X,)], backend=backend)
    validate_accuracy(built, [(X,)], [X])


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_a_function_of_several_tensors_and_results(backend: str) -> None:
    def parts(x: Tensor, y: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        return {"sum": x + y, "both": (x, y)}

    built = build_function(parts, [(X, X)], backend=backend)
    validate_accuracy(built, [(X, 3 * X)], [parts(X, 3 * X)])


def test_the_rank_is_no_weight_of_the_checkpoint() -> None:
    class Rank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rank = SPMDRank(2)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.rank.get_rank()

    built = build_module(Rank, [(X,)], tp_degree=2)
    assert built.weights == {}
    assert torch.equal(built(X), X)  # that of rank 0


def test_weights_that_do_not_fit() -> None:
    weights = Mlp(False).state_dict()
    with pytest.raises(WeightError, match=r"up\.bias"):
        build_module(Mlp, [(X,)], state_dict={n: t for n, t in weights.items() if n != "up.bias"})
    with pytest.raises(WeightError, match="extra"):
        build_module(Mlp, [(X,)], state_dict={**weights, "extra": X})


@pytest.mark.parametrize("content", [b"nothing of the kind", None])
def test_a_file_that_holds_no_weights(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightError, match=r"w\.pt"):
        build_module(Mlp, [(X,)], checkpoint_path=path)
    torch.save([1, 2], path)
    with pytest.raises(WeightError, match="dictionary of tensors"):
        build_module(Mlp, [(X,)], checkpoint_path=path)


def test_other_shapes_than_it_was_built_for() -> None:
    built = build_module(Mlp, [(X,)])
    for other in ((X[:1],), (X.double(),), (X, X)):
        with pytest.raises(ShapeError, match="build it again"):
            built(*other)


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="backend='neuron'"):
        build_module(Mlp, [(X,)], backend="neuron")
    with pytest.raises(ConfigError, match="2 example_inputs"):
        build_module(Mlp, [(X,), (X,)])
    with pytest.raises(ConfigError, match="list of tuples"):
        build_module(Mlp, [X])  # type: ignore[list-item]  # the mistake
    with pytest.raises(ConfigError, match="not both"):
        build_module(Mlp, [(X,)], state_dict={}, checkpoint_path="x")
    with pytest.raises(ConfigError, match="at least one rank, not 0"):
        build_module(Mlp, [(X,)], tp_degree=0)
