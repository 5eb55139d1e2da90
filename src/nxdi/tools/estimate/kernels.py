"""Where kernels would not serve a model or its sizes are padded, and how many ranks would help."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nxdi.config.keywords import changed_fields
from nxdi.errors import NxdiError
from nxdi.graph.plan import GraphSpec
from nxdi.kernels import nki
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import RMSNorm
from nxdi.tools.estimate.count import GraphCounter
from nxdi.tools.estimate.hardware import Hardware
from nxdi.tools.estimate.work import Work
from nxdi.tools.model_info.memory import plan_weights
from nxdi.tools.model_info.notes import sharding_notes
from nxdi.types import Phase

_FOLLOWING = {"world_size", "local_ranks_size", "moe_tp_degree"}  # from tp_degree
_TILE = 128  # partitions, and what kernels want sizes to be a multiple of


@dataclass(frozen=True)
class Step:
    """A graph, its work, and its model on one rank."""

    spec: GraphSpec
    work: Work
    model: Any

    @property
    def num_rows(self) -> int:
        """Tokens of all rows of the batch."""
        return self.spec.batch_size * self.spec.num_tokens

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.neuron_config.compute_dtype
        return dtype


def _products(kernel: Any, step: Step) -> Iterator[Any]:
    for product in step.work.products:
        shapes = (product.rows, product.inner), (product.inner, product.columns)
        yield kernel.Call(x_shape=shapes[0], w_shape=shapes[1], dtype=product.dtype)


def _norms(kernel: Any, step: Step) -> Iterator[Any]:
    sizes = {m.weight.shape[0] for m in step.model.modules() if isinstance(m, RMSNorm)}
    for size in sorted(sizes):
        shape = (step.num_rows, size)
        yield kernel.Call(shape=shape, dtype=step.dtype, gamma_shape=(1, size))


def _prompts(kernel: Any, step: Step) -> Iterator[Any]:
    if step.spec.phase is Phase.PREFILL:
        yield from step.work.attend_calls


def _cached(kernel: Any, step: Step) -> Iterator[Any]:
    kv_dtype = step.model.neuron_config.cache_dtype
    if step.spec.phase.is_decoding:
        for call in step.work.attend_calls:
            yield kernel.Call(attend=call, kv_dtype=kv_dtype, block_size=step.spec.block_size)


def _mlps(kernel: Any, step: Step) -> Iterator[Any]:
    for mlp in step.model.modules():
        if isinstance(mlp, GatedMLP):
            hidden = mlp.down_proj.output_size
            inner = mlp.gate_proj.weight.numel() // hidden
            yield kernel.Call(
                x_shape=(step.num_rows, hidden),
                gate_shape=(hidden, inner),
                down_shape=(inner, hidden),
                dtype=step.dtype,
                activation=step.model.config.hidden_act,
            )


def _prompt_mlps(kernel: Any, step: Step) -> Iterator[Any]:
    return iter(()) if step.spec.phase.is_decoding else _mlps(kernel, step)


def _token_mlps(kernel: Any, step: Step) -> Iterator[Any]:
    return _mlps(kernel, step) if step.spec.phase.is_decoding else iter(())


# What a graph would ask of each kernel, where that kernel is there.
_CALLS: dict[str, Callable[[Any, Step], Iterator[Any]]] = {
    "matmul": _products,
    "rmsnorm": _norms,
    "attention_prefill": _prompts,
    "attention_decode": _cached,
    "mlp_prefill": _prompt_mlps,
    "mlp_decode": _token_mlps,
}


def find_problems(
    app: NeuronApplicationBase, wanted: Mapping[str, Tensor], steps: Sequence[Step]
) -> Iterator[str]:
    """What is padded on the ranks of `app`, and the calls that kernels decline.

    wanted: the tensors of one rank.
    """
    # Copies of key/value heads cost memory; heads and sizes of zeros cost time as well.
    yield from (note for note in sharding_notes(wanted, app.num_ranks) if "zeros" in note)
    for name, calls in _CALLS.items():
        if find_spec(f"{nki.__name__}.{name}") is not None:
            kernel = nki.load_kernels(name)
            every = dict.fromkeys(call for step in steps for call in calls(kernel, step))
            yield from _declined(name, kernel, every)


def _declined(name: str, kernel: ModuleType, calls: Iterable[Any]) -> Iterator[str]:
    """Each reason once, and whether padding would help."""
    reasons: dict[str, Any] = {}
    for call in calls:
        reason = kernel.supports(call)
        if reason is not None:
            reasons.setdefault(reason, call)
    for reason, call in reasons.items():
        padded = _padded(call)
        helps = padded != call and kernel.supports(padded) is None
        remedy = f"; padded to multiples of {_TILE} it would be served" if helps else ""
        yield f"kernel {name} declines: {reason}{remedy}"


def _padded(call: Any) -> Any:
    """The call with sizes that are multiples of a tile; the first size of all is of rows."""
    shapes = {name: shape for name, shape in vars(call).items() if isinstance(shape, tuple)}
    padded = {name: tuple(map(_round_up, shape)) for name, shape in shapes.items()}
    for name, shape in list(shapes.items())[:1]:
        padded[name] = (shape[0], *padded[name][1:])
    return replace(call, **padded)


def _round_up(size: int) -> int:
    return size if size == 1 else -(-size // _TILE) * _TILE


def suggest_degrees(app: NeuronApplicationBase, hardware: Hardware) -> tuple[int, ...]:
    """The nearest tp degrees below and above that of `app` without problems, where it has some."""
    now = app.neuron_config.tp_degree
    most = hardware.target.max_ranks(hardware.logical_size)
    divisors = [n for n in range(1, most + 1) if most % n == 0 and n != now]
    below = (n for n in reversed(divisors) if n < now and _is_smooth(app, n))
    above = (n for n in divisors if n > now and _is_smooth(app, n))
    return tuple(n for n in (next(below, None), next(above, None)) if n is not None)


def _is_smooth(app: NeuronApplicationBase, tp_degree: int) -> bool:
    """Whether the model has no problems on so many ranks."""
    try:
        other = with_tp_degree(app, tp_degree)
        counter = GraphCounter(other)
        ends = (other.plan.of(phase)[-1] for phase in (Phase.PREFILL, Phase.DECODE))
        steps = [Step(spec, counter.count(spec), counter.model(spec.phase)) for spec in ends]
    except NxdiError:  # the model has no such cut
        return False
    wanted = plan_weights(other, counter.model(Phase.DECODE)).wanted
    return not any(find_problems(other, wanted, steps))


def with_tp_degree(app: NeuronApplicationBase, tp_degree: int) -> NeuronApplicationBase:
    """The same model on another number of ranks. Raises: what its config raises for that number."""
    neuron = app.neuron_config
    given = {item.name for item in changed_fields(neuron)} - _FOLLOWING
    options = {name: getattr(neuron, name) for name in given}
    options |= {"torch_dtype": neuron.torch_dtype, "tp_degree": tp_degree}
    config = copy.copy(app.config)
    config.neuron_config = type(neuron)(**options)
    return type(app)(app.model_path, config)
