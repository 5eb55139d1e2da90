"""The double itself: what the SDK would refuse, it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuron.nxd_double import Double
from neuron.nxd_trace import ContractError

ARGS = "-O1 --lnc=1"
X = torch.ones(2, 3)


class Good(nn.Module):
    """y = x W + state; the state grows by one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3), requires_grad=False)
        self.register_buffer("state", torch.zeros(2, 3))

    def forward(self, x: Tensor) -> Any:
        self.state = torch.add(self.state, 1.0)
        return x @ self.weight + self.state


@pytest.fixture
def double() -> Double:
    return Double()


@pytest.fixture
def nxd(double: Double) -> SimpleNamespace:
    return double.package


def trace(nxd: Any, model: nn.Module, world_size: int = 1, **kwargs: Any) -> Any:
    with nxd.NxDParallelState(
        world_size=world_size, tensor_model_parallel_size=world_size, lnc_size=1
    ):
        return nxd.trace.functions.trace(model, kwargs=kwargs or {"x": X})


def compile_(nxd: Any, traced: Any, workdir: Path, args: str = ARGS, key: str = "a") -> Any:
    return nxd.trace.functions.compile(
        traced.hlo, traced.metaneff, compiler_workdir=workdir, compiler_args=args, key=key
    )


def built(nxd: Any, workdir: Path, world_size: int = 1) -> Any:
    traced = trace(nxd, Good(), world_size)
    return nxd.NxDModel(world_size=world_size).add("a", traced, compile_(nxd, traced, workdir))


def on_device(nxd: Any, workdir: Path) -> Any:
    model = built(nxd, workdir)
    model.set_weights([{"weight": torch.full((3, 3), 2.0)}])
    model.to_neuron()
    return model


def test_what_keeps_the_rules_runs(nxd: Any, tmp_path: Path) -> None:
    model = on_device(nxd, tmp_path)
    assert model.get_available_keys() == {"a"}
    assert torch.equal(model(X), torch.full((2, 3), 7.0))
    assert torch.equal(model(x=X, model_name="a"), torch.full((2, 3), 8.0))
    assert torch.equal(model.read_from_neuron_buffer("state", 0), torch.full((2, 3), 2.0))
    model.write_to_neuron_buffer(torch.zeros(2, 3), "state", 0)
    assert torch.equal(model(X), torch.full((2, 3), 7.0))
    model.save(str(tmp_path / "model.pt"))
    again = nxd.NxDModel.load(str(tmp_path / "model.pt"))
    again.set_weights([{"weight": torch.eye(3)}])
    again.to_neuron()
    assert torch.equal(again(X), torch.full((2, 3), 2.0))


# Forwards that cannot be traced.


class Varied(Good):
    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.inner.register_buffer("below", torch.zeros(2, 3))
        self.forward = forward.__get__(self)


def star_args(self: Any, *x: Tensor) -> Tensor:
    return x[0]


def star_keywords(self: Any, x: Tensor, **more: Tensor) -> Tensor:
    return x


def default_that_is_not_none(self: Any, x: Tensor, scale: float = 2.0) -> Tensor:
    return x * scale


def no_inputs(self: Any) -> Any:
    return self.state


def state_in_place(self: Any, x: Tensor) -> Any:
    self.state.add_(1.0)
    return x + self.state


def state_copied_into(self: Any, x: Tensor) -> Any:
    self.state.copy_(x)
    return self.state * 2


def view_of_state_in_place(self: Any, x: Tensor) -> Any:
    self.state[0].add_(x[0])
    return x + self.state


def parameter_in_place(self: Any, x: Tensor) -> Any:
    self.weight.mul_(2.0)
    return x @ self.weight


def parameter_assigned(self: Any, x: Tensor) -> Tensor:
    self.weight = nn.Parameter(self.weight * 2, requires_grad=False)
    return x


def state_of_a_submodule(self: Any, x: Tensor) -> Tensor:
    self.inner.below = x + self.inner.below
    return x


def state_of_another_dtype(self: Any, x: Tensor) -> Tensor:
    self.state = self.state.to(torch.float16)
    return x


def state_of_another_shape(self: Any, x: Tensor) -> Tensor:
    self.state = torch.cat([self.state, x])
    return x


def wide_output(self: Any, x: Tensor) -> Tensor:
    return x.argmax(dim=1)


def nested_output(self: Any, x: Tensor) -> Any:
    return x, [x]


def output_by_name(self: Any, x: Tensor) -> Any:
    return {"x": x}


def value_read(self: Any, x: Tensor) -> Tensor:
    return x * 2 if bool(x.sum() > 0) else x


def tensor_of_the_host(self: Any, x: Tensor) -> Tensor:
    return x + torch.arange(3)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (star_args, r"takes \*x"),
        (star_keywords, r"takes \*more"),
        (default_that_is_not_none, "scale=2.0: a default can only be None"),
        (no_inputs, "at least one input"),
        (state_in_place, "add_.* writes state in place"),
        (state_copied_into, "copy_.* writes state in place"),
        (view_of_state_in_place, "add_.* writes state in place"),
        (parameter_in_place, "mul_.* writes weight in place"),
        (parameter_assigned, "weight was assigned; only buffers of the root"),
        (state_of_a_submodule, "inner.below was assigned; only buffers of the root"),
        (state_of_another_dtype, "state state became .*float16"),
        (state_of_another_shape, r"state state became \(\(4, 3\)"),
        (wide_output, "an output is torch.int64"),
        (nested_output, "one flat tuple"),
        (output_by_name, "one flat tuple"),
    ],
)
def test_forwards_that_cannot_be_traced(
    forward: Callable[..., Any], message: str, nxd: Any
) -> None:
    with pytest.raises(ContractError, match=message):
        trace(nxd, Varied(forward))


@pytest.mark.parametrize("forward", [value_read, tensor_of_the_host])
def test_what_the_tracer_itself_refuses(forward: Callable[..., Any], nxd: Any) -> None:
    with pytest.raises(Exception, match=r"[Mm]eta|device|data-dependent"):
        trace(nxd, Varied(forward))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"y": X}, r"inputs \['y'\] for the parameters \['x'\]"),
        ({"x": X, "y": X}, r"inputs \['x', 'y'\]"),
        ({"x": [X]}, "input x is a list"),
        ({"x": X.double()}, "input x is torch.float64"),
        ({"x": X.long()}, "input x is torch.int64"),
    ],
)
def test_example_inputs(inputs: dict[str, Any], message: str, nxd: Any) -> None:
    with pytest.raises(ContractError, match=message):
        trace(nxd, Good(), **inputs)


def test_a_missing_input(nxd: Any) -> None:
    with nxd.NxDParallelState(), pytest.raises(ContractError, match="no example of the inputs"):
        nxd.trace.functions.trace(Good())


def test_a_weight_without_memory(nxd: Any) -> None:
    with pytest.raises(ContractError, match="weight has no memory"):
        trace(nxd, Good().to("meta"))


class Reduces(Good):
    """Sums over ranks of a mesh that is given."""

    def __init__(self, mesh: list[int]) -> None:
        super().__init__()
        self.mesh = mesh

    def forward(self, x: Tensor) -> Any:
        return torch.ops.nxdi.all_reduce(x, "sum", self.mesh, 2)


def test_every_rank_is_in_every_collective(nxd: Any) -> None:
    trace(nxd, Reduces([0, 1, 2, 3]), 4)
    with pytest.raises(ContractError, match=r"over \[0, 1\] in a world of 4"):
        trace(nxd, Reduces([0, 1]), 4)


# Calls.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda nxd: nxd.NxDModel(), "missing a required argument: 'world_size'"),
        (lambda nxd: nxd.NxDModel(2, ranks=1), "unexpected keyword argument 'ranks'"),
        (lambda nxd: nxd.NxDModel(2, 0), "start_rank and local_ranks_size go together"),
        (lambda nxd: nxd.NxDModel(2, local_ranks_size=1), "go together"),
        (lambda nxd: nxd.NxDModel(4, 3, 2), "ranks from 3 on, of 4"),
        (lambda nxd: nxd.NxDModel.load("m", world_size=2), "unexpected keyword argument"),
        (lambda nxd: nxd.NxDParallelState(tp_degree=2), "unexpected keyword argument"),
        (
            lambda nxd: nxd.NxDParallelState(world_size=4, tensor_model_parallel_size=3),
            "a world of 4 ranks",
        ),
        (lambda nxd: nxd.trace.functions.trace(Good(), bucket=1), "unexpected keyword argument"),
        (lambda nxd: nxd.trace.functions.trace(Good(), (X,)), "outside NxDParallelState"),
        (lambda nxd: nxd.ModelBuilder(Good(), tag="a"), "unexpected keyword argument 'tag'"),
        (lambda nxd: nxd.ModelBuilder(Good()), "the double does not compute it"),
        (lambda nxd: nxd.shard_checkpoint({}, Good()), "the double does not compute it"),
    ],
)
def test_calls_are_bound_to_the_published_signatures(
    call: Callable[[Any], Any], message: str, nxd: Any
) -> None:
    with pytest.raises(ContractError, match=message):
        call(nxd)


def test_what_is_not_published_is_not_there(nxd: Any) -> None:
    assert not hasattr(nxd.NxDModel(1), "initialize")
    with pytest.raises(AttributeError):
        nxd.parallel_model_trace()


def test_one_program_for_all_ranks(nxd: Any) -> None:
    with nxd.NxDParallelState(), pytest.raises(ContractError, match="spmd=False"):
        nxd.trace.functions.trace(Good(), (X,), spmd=False)


def test_parallel_state_is_entered_once(nxd: Any) -> None:
    state = nxd.NxDParallelState()
    with state, pytest.raises(ContractError, match="entered twice"):
        state.__enter__()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("-O1", "lnc_size=1 was traced"),
        ("-O1 --lnc=2", "lnc_size=1 was traced"),
        ("-O1 --lnc=1 -O2", r"repeated: \['-O'\]"),
        ("-O1 --lnc=1 --auto-cast=none --auto-cast all", r"repeated: \['--auto-cast'\]"),
        ("-O1 --lnc=1 --target trn1", "--target trn1 contradicts"),
        ("-O1 --lnc=1 --tensorizer-options='--a", "No closing quotation"),
    ],
)
def test_compiler_arguments(
    args: str, message: str, nxd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2")
    traced = trace(nxd, Good())
    with pytest.raises((ContractError, ValueError), match=message):
        compile_(nxd, traced, tmp_path, args)


def test_a_compiler_that_fails_leaves_its_log(double: Double, nxd: Any, tmp_path: Path) -> None:
    double.failing = "no memory"
    with pytest.raises(RuntimeError, match="Compilation failed for a"):
        compile_(nxd, trace(nxd, Good()), tmp_path)
    (log,) = tmp_path.rglob("log-neuron-cc.txt")
    assert log.read_text() == "no memory"


def test_parts_of_two_traces_do_not_mix(nxd: Any, tmp_path: Path) -> None:
    one, two = trace(nxd, Good()), trace(nxd, Varied(default_none))
    with pytest.raises(ContractError, match="metaneff is of another trace"):
        compile_(nxd, SimpleNamespace(hlo=one.hlo, metaneff=two.metaneff), tmp_path)
    with pytest.raises(ContractError, match="compiled from another trace"):
        nxd.NxDModel(1).add("a", one, compile_(nxd, two, tmp_path))


def default_none(self: Any, x: Tensor, scale: Tensor | None = None) -> Any:
    self.state = torch.add(self.state, 2.0)
    return x * 3 + self.state


class OtherState(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3), requires_grad=False)
        self.register_buffer("state", torch.zeros(2, width))

    def forward(self, x: Tensor) -> Any:
        self.state = self.state + x.sum()
        return x @ self.weight


@pytest.mark.parametrize(
    ("key", "model", "message"),
    [
        ("a", Good(), "a graph a was added before"),
        ("b", Varied(default_none), "forward of b takes .*scale"),
        ("b", OtherState(4), "b has other states than the first graph"),
    ],
)
def test_graphs_of_one_model_agree(
    key: str, model: nn.Module, message: str, nxd: Any, tmp_path: Path
) -> None:
    first, traced = built(nxd, tmp_path), trace(nxd, model)
    with pytest.raises(ContractError, match=message):
        first.add(key, traced, compile_(nxd, traced, tmp_path, key=key))


def test_graphs_are_of_the_models_world(nxd: Any, tmp_path: Path) -> None:
    traced = trace(nxd, Good(), 2)
    with pytest.raises(ContractError, match="a was traced for 2 ranks"):
        nxd.NxDModel(4).add("a", traced, compile_(nxd, traced, tmp_path))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "0 ranks' weights for 1"),
        ([{}], "rank 0: weight weight missing"),
        ([{"weight": torch.eye(4)}], r"weight \(\(4, 4\)"),
        ([{"weight": torch.eye(3).half()}], "weight .*float16"),
        ([{"weight": torch.eye(3, device="meta")}], "without memory"),
    ],
)
def test_weights_fit_the_graphs(
    weights: list[dict[str, Tensor]], message: str, nxd: Any, tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match=message):
        built(nxd, tmp_path).set_weights(weights)


def test_order_of_loading(nxd: Any, tmp_path: Path) -> None:
    model, weights = built(nxd, tmp_path), [{"weight": torch.eye(3)}]
    with pytest.raises(ContractError, match="to_neuron before set_weights"):
        model.to_neuron()
    with pytest.raises(ContractError, match="called before set_weights and to_neuron"):
        model(X)
    model.set_weights(weights)
    with pytest.raises(ContractError, match="called before set_weights and to_neuron"):
        model(X)
    with pytest.raises(ContractError, match="before to_neuron"):
        model.read_from_neuron_buffer("state", 0)
    model.to_neuron()
    with pytest.raises(ContractError, match="set_weights after to_neuron"):
        model.set_weights(weights)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {"y": X}, "no graph for inputs"),
        ((X[:1],), {}, "no graph for inputs"),
        ((X.half(),), {}, "input x is torch.float16"),
        ((X,), {"model_name": "b"}, "model_name='b', but the shapes are of"),
        ((X,), {"forward_mode": "async"}, "does not compute forward_mode='async'"),
    ],
)
def test_calls_of_graphs(
    args: Any, kwargs: dict[str, Any], message: str, nxd: Any, tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match=message):
        on_device(nxd, tmp_path)(*args, **kwargs)


def test_equal_shapes_need_the_name_of_the_graph(nxd: Any, tmp_path: Path) -> None:
    model, traced = built(nxd, tmp_path), trace(nxd, Good())
    model.add("b", traced, compile_(nxd, traced, tmp_path, key="b"))
    model.set_weights([{"weight": torch.eye(3)}])
    model.to_neuron()
    with pytest.raises(ContractError, match="model_name must say which"):
        model(X)
    assert torch.equal(model(X, model_name="b"), torch.full((2, 3), 2.0))


@pytest.mark.parametrize(
    ("key", "rank", "value", "message"),
    [
        ("nothing", 0, X, "no buffer nothing"),
        ("state", 1, X, "rank 1 of 1"),
        ("state", 0, X[:1], "written to state"),
        ("state", 0, X.half(), "written to state"),
    ],
)
def test_buffers(
    key: str, rank: int, value: Tensor, message: str, nxd: Any, tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match=message):
        on_device(nxd, tmp_path).write_to_neuron_buffer(value, key, rank)


def test_no_weights_are_saved(nxd: Any, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="saves no weights"):
        on_device(nxd, tmp_path).save(str(tmp_path / "model.pt"), save_weights=True)


def test_a_file_of_another_sdk_is_no_model(nxd: Any, tmp_path: Path) -> None:
    built(nxd, tmp_path).save(str(tmp_path / "model.pt"))
    other = Double(versions={"neuronx-distributed": "0.19.28093"}).package
    assert not isinstance(other.NxDModel.load(str(tmp_path / "model.pt")), other.NxDModel)


def test_calls_are_remembered(double: Double, nxd: Any, tmp_path: Path) -> None:
    built(nxd, tmp_path)
    names = [name for name, _ in double.calls]
    assert names == [
        "NxDParallelState.__init__",
        "NxDParallelState.__enter__",
        "trace.functions.trace",
        "NxDParallelState.__exit__",
        "NxDModel.__init__",
        "trace.functions.compile",
        "NxDModel.add",
    ]
    assert double.calls_of("NxDModel.__init__") == [{"world_size": 1}]
    assert double.args == {"a": ARGS}
