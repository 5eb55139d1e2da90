"""The modules `nki`, `nki.isa` and `nki.language`, which exist while a kernel is imported or runs.

Nothing is installed for good: outside of `nki_modules`, `import nki` finds what is installed, or
nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from nxdi.kernels.sim import isa
from nxdi.kernels.sim.dtypes import DTYPES, DType, as_dtype
from nxdi.kernels.sim.language import creation, elementwise, program
from nxdi.kernels.sim.memory import MemoryRegion
from nxdi.kernels.sim.ops import OPS
from nxdi.kernels.sim.tensor import NkiTensor


def _array(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make` for arrays whose dtype is one of `nki.language`."""

    def made(*sizes: Any, dtype: Any = "float32") -> Any:
        if isinstance(sizes[-1], DType):
            sizes, dtype = sizes[:-1], sizes[-1]
        return make(*sizes).astype(as_dtype(dtype).carrier)

    return made


_CONSTANTS = {
    "arange": _array(np.arange),
    "identity": _array(np.eye),
    "ones": _array(np.ones),
    "zeros": _array(np.zeros),
}


def _public(source: ModuleType) -> dict[str, Any]:
    """What a module defines itself."""
    return {
        name: value
        for name, value in vars(source).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == source.__name__
    }


def _language() -> ModuleType:
    module = ModuleType("nki.language", "nki.language as simulated by nxdi")
    names = _public(creation) | _public(elementwise) | _public(program)
    names |= {region.name: region for region in MemoryRegion}
    names |= {("bool_" if name == "bool" else name): dtype for name, dtype in DTYPES.items()}
    names |= OPS | {"hbm": creation.hbm, "tile_size": program.tile_size}
    names |= {"sequential_range": program.sequential_range, "static_range": program.static_range}
    names |= {"DType": DType, "NkiTensor": NkiTensor, "MemoryRegion": MemoryRegion}
    vars(module).update(names)
    return module


@cache
def simulated_modules() -> dict[str, ModuleType]:
    """The modules, by the names that kernels import."""
    from nxdi.kernels.sim.run import Kernel, simulate

    nki = ModuleType("nki", "nki as simulated by nxdi")
    language = _language()
    is_module = ModuleType("nki.isa", "nki.isa as simulated by nxdi")
    vars(is_module).update({name: getattr(isa, name) for name in isa.__all__})
    vars(nki).update(
        jit=Kernel.decorate, simulate=simulate, isa=is_module, language=language, __path__=[]
    )
    vars(nki)["tensor"] = constants = ModuleType("nki.tensor", "constants made while compiling")
    vars(constants).update(_CONSTANTS)
    return {
        "nki": nki,
        "nki.isa": is_module,
        "nki.language": language,
        "nki.tensor": constants,
    }


@contextmanager
def nki_modules() -> Iterator[None]:
    """`import nki`, `import nki.isa` and `import nki.language` find the simulator in the block.

    For importing a module with kernels:

        with nki_modules():
            from my_project.kernels import rmsnorm
    """
    ours = simulated_modules()
    before = {name: sys.modules.get(name) for name in ours}
    sys.modules.update(ours)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
