"""A single module or function as each rank runs it: eager, or compiled for the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nxdi.errors import ConfigError, ShapeError
from nxdi.parallel_layers.groups import SINGLE, SimulatedWorld
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.runtime.weights import check_weights, cut_for_rank, model_tensors, without_memory
from nxdi.tools.module_testing.compiled import compile_module
from nxdi.tools.module_testing.validate import check_inputs
from nxdi.tools.module_testing.weights import initial_weights, read_weights

_BACKENDS = ("eager", "cpu")


class BuiltModule:
    """A module on all its ranks; a call returns what rank 0 returns.

    `weights` is the full checkpoint that the ranks' weights were cut from.
    """

    def __init__(
        self,
        ranks: Sequence[Callable[..., Any]],
        weights: dict[str, Tensor],
        example: tuple[Tensor, ...],
    ) -> None:
        self.weights = weights
        self._ranks, self._example = ranks, example
        self._world = SINGLE if len(ranks) == 1 else SimulatedWorld(len(ranks))

    def __call__(self, *inputs: Tensor) -> Any:
        """Raises: ShapeError for other shapes or dtypes than those of the example inputs."""
        given, taken = _described(inputs), _described(self._example)
        if given != taken:
            raise ShapeError(
                f"built for inputs of {taken}, called with {given}; build it again for those"
            )
        with torch.no_grad():
            return self._world.run([functools.partial(rank, *inputs) for rank in self._ranks])[0]


def build_module(  # noqa: PLR0913  NxDI's keywords
    module_cls: Callable[..., nn.Module],
    example_inputs: Sequence[tuple[Tensor, ...]],
    module_init_kwargs: Mapping[str, Any] | None = None,
    tp_degree: int = 1,
    compiler_args: str | None = None,
    compiler_workdir: str | PathLike[str] | None = None,
    checkpoint_path: str | PathLike[str] | None = None,
    priority_model_idx: int | None = 0,
    logical_nc_config: int = 1,
    state_dict: Mapping[str, Tensor] | None = None,
    backend: str = "eager",
) -> BuiltModule:
    """Build `module_cls(**module_init_kwargs)` for each of `tp_degree` simulated ranks.

    example_inputs: one tuple of tensors, which fixes the shapes.
    state_dict, or the file or folder at checkpoint_path: the weights of the whole module, cut for
    each rank. Default: as a module of torch's own layers has them after torch.manual_seed(0), where
    parallel layers stand for their counterparts.
    backend: eager, or cpu to compile it.
    `compiler_args`, `compiler_workdir`, `priority_model_idx` and `logical_nc_config` tune the
    Neuron compiler and have no effect here.
    Raises: WeightError if the weights do not fit; ConfigError for any other wrong argument.
    """
    check_inputs("example_inputs", example_inputs)
    if len(example_inputs) != 1:
        raise ConfigError(f"{len(example_inputs)} example_inputs; give one tuple, build for each")
    if backend not in _BACKENDS:
        raise ConfigError(f"backend={backend!r} is not one of {', '.join(_BACKENDS)}")
    if state_dict is not None and checkpoint_path is not None:
        raise ConfigError("give either state_dict or checkpoint_path, not both")
    make = functools.partial(module_cls, **(module_init_kwargs or {}))
    if checkpoint_path is not None:
        state_dict = read_weights(Path(checkpoint_path))
    full = initial_weights(make) if state_dict is None else dict(state_dict)
    modules = [_rank_module(make, full, tp_degree, rank) for rank in range(tp_degree)]
    (example,) = example_inputs
    ranks: list[Callable[..., Any]] = [*modules]
    if backend == "cpu":
        ranks = [compile_module(module, example) for module in modules]
    return BuiltModule(ranks, full, example)


def build_function(
    func: Callable[..., Any],
    example_inputs: Sequence[tuple[Tensor, ...]],
    tp_degree: int = 1,
    compiler_args: str | None = None,
    compiler_workdir: str | PathLike[str] | None = None,
    priority_model_idx: int | None = 0,
    logical_nc_config: int = 1,
    backend: str = "eager",
) -> BuiltModule:
    """`build_module` for a function of tensors."""
    return build_module(
        _Function, example_inputs, {"function": func}, tp_degree=tp_degree, backend=backend
    )


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def _rank_module(
    make: Callable[[], nn.Module], full: Mapping[str, Tensor], tp_degree: int, rank: int
) -> nn.Module:
    with without_memory(), tensor_parallel(tp_degree):
        module = make().eval()
    wanted = model_tensors(module)
    check_weights(wanted, full)
    module.load_state_dict(cut_for_rank(wanted, full, rank), strict=True, assign=True)
    return module


def _described(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in tensors)
