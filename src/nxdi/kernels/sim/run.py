"""Running a kernel: `simulate(kernel)(*arrays)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from nxdi.errors import UnsupportedError
from nxdi.kernels.sim import arrays, capacity, core_pair
from nxdi.kernels.sim.core import _CURRENT, Core, enter, leave
from nxdi.kernels.sim.dtypes import NUMERICS
from nxdi.kernels.sim.machine import Machine, machine_of
from nxdi.kernels.sim.modules import nki_modules
from nxdi.kernels.sim.report import Report, make_report
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.trace import Trace


class Kernel:
    """What `nki.jit` makes of a function: `kernel(...)`, or `kernel[2](...)` on two cores."""

    def __init__(self, function: Callable[..., Any], num_cores: int = 1) -> None:
        self.function, self.num_cores = function, num_cores
        self.__name__ = getattr(function, "__name__", "kernel")
        self.__doc__ = function.__doc__

    @classmethod
    def decorate(cls, fn: Callable[..., Any] | None = None, **options: Any) -> Any:
        """`@nki.jit` and `@nki.jit(...)`; what the compiler is told has no effect here."""
        return cls(fn) if fn is not None else cls

    def __getitem__(self, grid: Any) -> Kernel:
        sizes = grid if isinstance(grid, tuple) else (grid,)
        if sizes not in ((1,), (2,)):
            raise UnsupportedError(f"a launch on {grid} cores; NKI has kernel[1] and kernel[2]")
        return Kernel(self.function, sizes[0])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Within a kernel, the function itself; elsewhere a simulation with the defaults."""
        if _CURRENT.get() is not None:
            return self.function(*args, **kwargs)
        return Simulation(self)(*args, **kwargs)


@dataclass
class Simulation:
    """A kernel on a simulated machine. Call it; then ask for `report()` and `traces`."""

    kernel: Any
    target: str = "gen3"
    numerics: str = "precise"
    traces: list[Trace] = field(default_factory=list)

    def __post_init__(self) -> None:
        machine_of(self.target)
        if self.numerics not in NUMERICS:
            raise UnsupportedError(f"numerics={self.numerics!r}; use one of {[*NUMERICS]}")
        if not isinstance(self.kernel, Kernel):
            function = getattr(self.kernel, "func", self.kernel)
            self.kernel = Kernel(getattr(function, "__wrapped__", function))

    @property
    def machine(self) -> Machine:
        return machine_of(self.target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the kernel. Arrays become tensors in memory; other arguments stay what they are.

        Returns: what the kernel returns, as torch tensors if an argument is one, else NumPy
        arrays; with numerics "shapes", torch tensors on the meta device.
        Raises: KernelError at the first line that breaks a rule.
        """
        number = self.kernel.num_cores
        shared: dict[Any, Any] = {}
        cores = [
            Core(self.machine, NUMERICS[self.numerics](), at, number, Trace(at), shared)
            for at in range(number)
        ]
        self.traces = [core.trace for core in cores]
        inputs = [self._place(core, args, kwargs) for core in cores]
        _share_inputs(inputs)
        with nki_modules():
            results = core_pair.run(cores, self._calls(cores, inputs))
        for core in cores:
            capacity.check(core.trace, core.machine)
        has_torch = any(type(item).__module__ == "torch" for item in (*args, *kwargs.values()))
        return _outputs(cores[0], results[0], has_torch)

    def _place(self, core: Core, args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
        def place(value: Any, name: str) -> Any:
            return arrays.to_device(core, value, name) if arrays.is_array(value) else value

        placed = [place(value, f"argument {at}") for at, value in enumerate(args)]
        return placed, {name: place(value, name) for name, value in kwargs.items()}

    def _calls(self, cores: list[Core], inputs: Any) -> list[Callable[[], Any]]:
        def call(core: Core, args: list[Any], kwargs: dict[str, Any]) -> Any:
            token = enter(core)
            try:
                # Overflow and invalid operations give infinities and NaN, as on the device.
                with np.errstate(all="ignore"):
                    return self.kernel.function(*args, **kwargs)
            finally:
                leave(token)

        return [partial(call, core, *given) for core, given in zip(cores, inputs, strict=True)]

    def report(self) -> Report:
        """Predicted time of the last run, and what bounds it."""
        if not self.traces:
            raise UnsupportedError("there is nothing to report yet; call the simulation first")
        return make_report(self.traces, self.machine)


def _share_inputs(inputs: list[tuple[list[Any], dict[str, Any]]]) -> None:
    """All cores see the same elements of an argument."""
    first = [*inputs[0][0], *inputs[0][1].values()]
    for args, kwargs in inputs[1:]:
        for one, other in zip(first, [*args, *kwargs.values()], strict=True):
            if isinstance(one, NkiTensor):
                other.storage.elements = one.storage.elements
                other.storage.shared = one.storage.shared


def _outputs(core: Core, result: Any, has_torch: bool) -> Any:
    if isinstance(result, (tuple, list)):
        return type(result)(_outputs(core, item, has_torch) for item in result)
    if result is None:
        return None
    token = enter(core)
    try:
        arrays.check_output(core, result)
    finally:
        leave(token)
    if not core.numerics.computes:
        return arrays.shape_of(result, has_torch)
    return arrays.to_host(core, result, has_torch)


def simulate(kernel: Any, target: str = "gen3", numerics: str = "precise") -> Simulation:
    """A kernel, to be called with arrays instead of being compiled.

    `target`: "gen2" (trn1, inf2), "gen3" (trn2) or "gen4" (trn3). `numerics`: "precise" casts as
    the device does, "fp32" keeps floating-point elements in float32, "shapes" checks and times
    without computing, so that full model shapes take seconds.
    """
    return Simulation(kernel, target, numerics)
