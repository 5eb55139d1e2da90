"""Looking at and replacing what modules of an eager model take and give, by the module's name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nxdi.errors import ConfigError, ShapeError
from nxdi.graph.plan import GraphSpec
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.runtime.backends.eager import EagerRank

# What a module is called with, or returned, by its name; a tensor in return replaces it.
OnInput = Callable[[str, Tensor], None]
OnOutput = Callable[[str, Tensor], Tensor | None]
Observer = Callable[[GraphSpec, Mapping[str, Tensor]], None]


@contextmanager
def capture_tensors(
    model: NeuronBaseForCausalLM, modules: Sequence[str], capture_inputs: bool = False
) -> Iterator[list[dict[str, Tensor]]]:
    """Within the block, collect what modules of rank 0 return: one dictionary per graph run.

    modules: names such as "layers.0.self_attn", or patterns such as "layers.*.mlp"; a * also
    matches dots.
    capture_inputs: also what they are given, as "<name>.input".
    Raises: ConfigError if the model is not loaded on the eager backend, or no module has that name.
    """
    steps: list[dict[str, Tensor]] = []
    names = matching_names(model, modules)

    def keep(suffix: str, name: str, tensor: Tensor) -> None:
        steps[-1][name + suffix] = tensor.detach().clone()

    with ExitStack() as stack:
        stack.enter_context(observed(model, lambda spec, inputs: steps.append({})))
        for root in eager_roots(model)[0]:
            on_input = partial(keep, ".input") if capture_inputs else None
            stack.enter_context(hooked(root, names, on_input, partial(keep, "")))
        yield steps


@contextmanager
def replace_tensors(
    model: NeuronBaseForCausalLM,
    replacements: Mapping[str, Tensor | Callable[[Tensor], Tensor]],
) -> Iterator[None]:
    """Within the block, modules of every rank return these tensors instead of their own.

    replacements: by module name or pattern; a function is given what the module returned.
    Raises: ConfigError as `capture_tensors`; while the model runs, ShapeError for a replacement of
    another shape.
    """
    by_name = {
        name: value
        for pattern, value in replacements.items()
        for name in matching_names(model, [pattern])
    }

    def replace(name: str, tensor: Tensor) -> Tensor:
        value = by_name[name]
        new = value if isinstance(value, Tensor) else value(tensor)
        if new.shape != tensor.shape:
            raise ShapeError(
                f"the replacement for {name} has shape {tuple(new.shape)}, the module returned "
                f"{tuple(tensor.shape)}; use a function to tell one step from another"
            )
        return new.to(tensor.dtype)

    with ExitStack() as stack:
        for roots in eager_roots(model):
            for root in roots:
                stack.enter_context(hooked(root, by_name, None, replace))
        yield


def eager_roots(model: NeuronBaseForCausalLM) -> list[list[nn.Module]]:
    """The decoders of each local rank, one per phase. Raises: ConfigError unless eager."""
    ranks = [rank for rank in model.runner.executables if isinstance(rank, EagerRank)]
    if len(ranks) < len(model.runner.executables):
        raise ConfigError(
            f"the model runs compiled graphs (backend={model.backend.name!r}), whose inner tensors "
            "cannot be seen; load it with backend='eager'"
        )
    roots: list[list[Any]] = [list(rank.modules.values()) for rank in ranks]
    return roots


def matching_names(model: NeuronBaseForCausalLM, patterns: Iterable[str]) -> list[str]:
    """The names of modules that fit. Raises: ConfigError for a pattern that fits none."""
    known = [name for name, _ in eager_roots(model)[0][0].named_modules() if name]
    found: dict[str, None] = {}
    for pattern in patterns:
        fitting = [name for name in known if fnmatchcase(name, pattern)]
        if not fitting:
            near = difflib.get_close_matches(pattern, known, n=3)
            hint = f"; near are {', '.join(near)}" if near else ""
            raise ConfigError(f"the model has no module {pattern!r}{hint}")
        found.update(dict.fromkeys(fitting))
    return list(found)


@contextmanager
def observed(model: NeuronBaseForCausalLM, observer: Observer) -> Iterator[None]:
    """Within the block, call `observer` before each run of a graph."""
    model.runner.observers.append(observer)
    try:
        yield
    finally:
        model.runner.observers.remove(observer)


@contextmanager
def hooked(
    root: nn.Module, names: Iterable[str], on_input: OnInput | None, on_output: OnOutput | None
) -> Iterator[None]:
    """Within the block, show the activations that the named modules below `root` take and give."""
    modules = dict(root.named_modules(remove_duplicate=False))
    with ExitStack() as stack:
        for name in names:
            if on_input is not None:
                before = partial(_before, name, on_input)
                handle = modules[name].register_forward_pre_hook(before, with_kwargs=True)
                stack.callback(handle.remove)
            if on_output is not None:
                after = modules[name].register_forward_hook(partial(_after, name, on_output))
                stack.callback(after.remove)
        yield


def _before(
    name: str, on_input: OnInput, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    candidates = (*args, kwargs.get("hidden_states"), *kwargs.values())
    given = next((value for value in candidates if isinstance(value, Tensor)), None)
    if given is not None:
        on_input(name, given)


def _after(name: str, on_output: OnOutput, module: nn.Module, args: Any, output: Any) -> Any:
    activation = activation_of(output)
    new = None if activation is None else on_output(name, activation)
    return None if new is None else with_activation(output, new)


def activation_of(output: Any) -> Tensor | None:
    """The activation in what a module returned; of rotary angles, cos and sin side by side."""
    if isinstance(output, Tensor):
        return output
    if _is_angles(output):
        return torch.cat(output, dim=-1)
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    hidden_states = getattr(output, "hidden_states", None)
    return hidden_states if isinstance(hidden_states, Tensor) else None


def with_activation(output: Any, new: Tensor) -> Any:
    """What a module returned, with another activation in it."""
    if isinstance(output, Tensor):
        return new
    if _is_angles(output):
        return new.chunk(2, dim=-1)
    if isinstance(output, tuple):
        return (new, *output[1:])
    return dataclasses.replace(output, hidden_states=new)


def _is_angles(output: Any) -> bool:
    return (
        isinstance(output, tuple)
        and len(output) == 2
        and all(isinstance(part, Tensor) for part in output)
        and output[0].shape == output[1].shape
    )
