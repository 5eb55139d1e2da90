"""From a piece to native code: torch.export, our kernels put in, AOTInductor, and its cache."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nxdi.kernels.cpu.attend import ATTEND_C_SHIM, load_attend_op
from nxdi.kernels.cpu.int4 import INT4_C_SHIM, load_int4_op
from nxdi.kernels.cpu.int8 import INT8_C_SHIM, load_int8_op
from nxdi.kernels.cpu.library import uses_library
from nxdi.kernels.cpu.linear import LINEAR_C_SHIM, load_linear_op
from nxdi.kernels.registry import Choice, named_layers, platform
from nxdi.runtime.backends.cpu.linear import use_linear_kernels
from nxdi.runtime.backends.cpu.pieces import digest, layers_of_inputs
from nxdi.runtime.backends.cpu.target import compiler_version, cpu_target
from nxdi.runtime.compile_cache import cache_key, get_or_build

# Wrapper code runs once per call and is most of the text: optimising it costs time and gains
# nothing.
_OPTIONS: dict[str, Any] = {
    "aot_inductor.package": True,
    "aot_inductor.compile_wrapper_opt_level": "O0",
    # Elements that are worth a thread of their own: a decode step is made of small loops.
    "cpp.min_chunk_size": 4096,
}


def compile_piece(
    piece: nn.Module, arguments: tuple[Any, ...], owner: nn.Module
) -> tuple[list[Path], list[Choice]]:
    """The native files of one piece, from the cache if its graph was compiled for such a CPU.

    owner: the module within it, whose weights are the last of its arguments.
    """
    with torch.no_grad(), named_layers(owner), platform("cpu") as choices:
        graph = torch.export.export(piece, arguments, strict=False).module()
    assert isinstance(graph, torch.fx.GraphModule)
    choices |= use_linear_kernels(graph, layers_of_inputs(graph, owner))
    constants = _constants(graph)
    options = {
        **_OPTIONS,
        **_kernel_options(choices),
        # Weights are inputs; tables that a model keeps as plain tensors go into the code.
        "aot_inductor.package_constants_in_so": bool(constants),
    }
    key = cache_key(
        {
            "graph": _code(graph),
            "constants": {name: digest(t) for name, t in constants.items()},
            "arguments": [
                f"{t.dtype} {tuple(t.shape)} {t.stride()}" for part in arguments for t in part
            ],
            "options": {name: str(value) for name, value in options.items()},
            "torch": torch.__version__,
            "compiler": compiler_version(),
            "cpu": cpu_target(),
            # For one thread loops are compiled without parallel ones.
            "threads": torch.get_num_threads(),
        }
    )
    folder = get_or_build(key, lambda folder: _compile(graph, arguments, options, folder))
    return sorted(folder.glob("piece/*")), sorted(choices, key=lambda choice: choice.op)


def _code(graph: torch.fx.GraphModule) -> list[str]:
    """The program, with those of the graphs it calls."""
    return [part.code for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]


def _constants(graph: torch.fx.GraphModule) -> dict[str, torch.Tensor]:
    """The tensors that are part of the graph; export keeps some of them as plain attributes."""
    return {
        f"{path}.{name}": value
        for path, part in graph.named_modules()
        for name, value in {**vars(part), **part._parameters, **part._buffers}.items()
        if isinstance(value, torch.Tensor)
    }


def _kernel_options(choices: set[Choice]) -> dict[str, Any]:
    """How compiled code calls our kernels: their C functions, not torch's dispatcher."""
    if not uses_library(choices):
        return {}
    shims = {
        load_linear_op(): [LINEAR_C_SHIM],
        load_attend_op(): [ATTEND_C_SHIM],
        load_int4_op(): [INT4_C_SHIM],
        load_int8_op(): [INT8_C_SHIM],
    }
    return {"aot_inductor.custom_ops_to_c_shims": shims}


def _compile(
    graph: torch.fx.GraphModule, arguments: tuple[Any, ...], options: dict[str, Any], folder: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own internals
        files: Any = torch._inductor.aot_compile(graph, arguments, options=options)
    (folder / "piece").mkdir()
    for file in files:
        shutil.copy2(str(file), folder / "piece")
