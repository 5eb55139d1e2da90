"""Choice of a kernel: ordered candidates per operation and platform; each may decline.

The choice is made while a graph is traced (or, in eager mode, while it runs) and can be recorded
for the manifest, with the name of the layer that it is for. Options may ask for a kernel, or forbid
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import nn

from nxdi.errors import UnsupportedError


@dataclass(frozen=True)
class Kernel:
    """One implementation of an operation. `declines(call)` returns why it cannot serve, or None.

    is_reference: it is the definition in plain operators, and no kernel.
    is_plain: it is operators that every backend computes well, worth a note only where a kernel
    declined.
    options: those that ask for it (True) or forbid it (False), in calls that it is `meant_for`.
    """

    name: str
    run: Callable[..., Any]
    declines: Callable[[Any], str | None]
    is_reference: bool = False
    is_plain: bool = False
    options: tuple[str, ...] = ()
    meant_for: Callable[[Any], bool] = lambda call: True

    @classmethod
    def reference(cls, name: str, run: Callable[..., Any]) -> Kernel:
        """The definition, which serves every call."""
        return cls(name, run, lambda call: None, is_reference=True)

    @classmethod
    def plain(cls, run: Callable[..., Any]) -> Kernel:
        """Operators that serve every call, and need no kernel."""
        return cls("operators", run, lambda call: None, is_plain=True)


@dataclass(frozen=True, order=True)
class Choice:
    """What was chosen for one operation of a layer, and why the candidates before it were not."""

    op: str
    chosen: str
    refused: tuple[tuple[str, str], ...] = field(default=())
    is_reference: bool = False
    layer: str = ""

    @property
    def reason(self) -> str:
        """Why no candidate before it serves."""
        given = "; ".join(f"{name}: {reason}" for name, reason in self.refused)
        return given or "there is no kernel for it"


_KERNELS: dict[tuple[str, str], list[Kernel]] = {}
_PLATFORM: ContextVar[str] = ContextVar("nxdi_kernel_platform", default="generic")
_OPTIONS: ContextVar[Mapping[str, bool]] = ContextVar(
    "nxdi_kernel_options", default=MappingProxyType({})
)
_RECORD: ContextVar[set[Choice] | None] = ContextVar("nxdi_kernel_record", default=None)
_LAYER: ContextVar[str] = ContextVar("nxdi_kernel_layer", default="")


def register(op: str, platform: str, kernel: Kernel) -> None:
    """Append a candidate; they are asked in the order of registration, "generic" ones last."""
    _KERNELS.setdefault((op, platform), []).append(kernel)


@contextmanager
def platform(name: str, options: Mapping[str, bool] | None = None) -> Iterator[set[Choice]]:
    """Prefer kernels of platform `name` within the block; yields the set of choices made.

    options: the values of those options about kernels that were given.
    """
    record: set[Choice] = set()
    tokens = _PLATFORM.set(name), _OPTIONS.set(options or {}), _RECORD.set(record)
    try:
        yield record
    finally:
        _PLATFORM.reset(tokens[0])
        _OPTIONS.reset(tokens[1])
        _RECORD.reset(tokens[2])


def choose(op: str, call: Any) -> Kernel:
    """The first candidate that does not decline `call`, before others the one an option asks for.

    Raises: UnsupportedError listing every reason, or why the one that is asked for cannot serve.
    """
    name = _PLATFORM.get()
    candidates = _KERNELS.get((op, name), []) if name != "generic" else []
    refused: list[tuple[str, str]] = []
    for kernel in [*sorted(candidates, key=_is_not_asked), *_KERNELS.get((op, "generic"), [])]:
        reason = _refusal(op, kernel, call)
        if reason is None:
            record = _RECORD.get()
            if record is not None and (refused or not kernel.is_plain):
                made = Choice(op, kernel.name, tuple(refused), kernel.is_reference, _LAYER.get())
                record.add(made)
            return kernel
        refused.append((kernel.name, reason))
    raise UnsupportedError(f"no kernel for {op} {call}: {refused}")


def _values(kernel: Kernel) -> dict[str, bool]:
    """The options about a kernel that were given."""
    given = _OPTIONS.get()
    return {name: given[name] for name in kernel.options if name in given}


def _is_not_asked(kernel: Kernel) -> bool:
    return not any(_values(kernel).values())


def _refusal(op: str, kernel: Kernel, call: Any) -> str | None:
    """Why a kernel cannot serve a call, or None.

    Raises: UnsupportedError if an option asks for it.
    """
    values = _values(kernel)
    asking = [name for name, value in values.items() if value]
    if values and not asking:
        return ", ".join(f"{name}=False" for name in values)
    reason = kernel.declines(call)
    if reason is not None and asking and kernel.meant_for(call):
        raise UnsupportedError(
            f"{' and '.join(asking)}=True, but {op} of {_LAYER.get() or 'the model'} cannot run "
            f"{kernel.name}: {reason}; change what the reason names, or leave the option out"
        )
    return reason


@contextmanager
def named_layers(root: nn.Module) -> Iterator[None]:
    """Choices made within the block, in the forward of a module of `root`, carry its name."""
    names = {module: name for name, module in root.named_modules()}
    callers: list[str] = []
    outside = _LAYER.get()  # a forward that raises does not leave its layers

    def enter(module: nn.Module, _: object) -> None:
        callers.append(_LAYER.get())
        _LAYER.set(names[module])

    def leave(*_: object) -> None:
        _LAYER.set(callers.pop())

    hooks = [module.register_forward_pre_hook(enter) for module in names]
    hooks += [module.register_forward_hook(leave) for module in names]
    try:
        yield
    finally:
        _LAYER.set(outside)
        for hook in hooks:
            hook.remove()


def below(path: str, choices: Iterable[Choice]) -> Iterator[Choice]:
    """The choices of a module's layers under the name that the module has in a model."""
    for choice in choices:
        yield replace(choice, layer=".".join(filter(None, (path, choice.layer))))


def by_kernel(choices: Iterable[Choice]) -> dict[Choice, tuple[str, ...]]:
    """Choices without their layers, and the layers of each."""
    layers: dict[Choice, list[str]] = {}
    for choice in choices:
        layers.setdefault(replace(choice, layer=""), []).append(choice.layer)
    return {choice: tuple(names) for choice, names in layers.items()}


def check_strict(choices: Iterable[Choice]) -> None:
    """Raises: UnsupportedError naming each layer that would run a reference, and why."""
    found = sorted(
        f"{choice.layer or 'the model'}: {choice.op} by the reference {choice.chosen} ("
        f"{choice.reason})"
        for choice in choices
        if choice.is_reference
    )
    if found:
        raise UnsupportedError(
            "strict_kernels=True, but no kernel serves\n  "
            + "\n  ".join(found)
            + "\nchange what the reasons name, or leave strict_kernels out to run the reference"
        )
