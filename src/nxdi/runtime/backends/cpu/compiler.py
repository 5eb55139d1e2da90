"""From a piece to native code: torch.export, our kernels put in, AOTInductor, and its cache."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nxdi.kernels.cpu.linear import linear_inductor_options
from nxdi.kernels.registry import Choice, platform
from nxdi.runtime.backends.cpu.linear import LINEAR_KERNEL, use_linear_kernels
from nxdi.runtime.backends.cpu.target import compiler_version, cpu_target
from nxdi.runtime.compile_cache import cache_key, get_or_build

# Wrapper code runs once per call and is most of the text: optimising it costs time and gains
# nothing.
_OPTIONS: dict[str, Any] = {
    "aot_inductor.package": True,
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
    # Elements that are worth a thread of their own: a decode step is made of small loops.
    "cpp.min_chunk_size": 4096,
}


def compile_piece(piece: nn.Module, arguments: tuple[Any, ...]) -> tuple[list[Path], list[Choice]]:
    """The native files of one piece, from the cache if its graph was compiled for such a CPU."""
    with torch.no_grad(), platform("cpu") as choices:
        graph = torch.export.export(piece, arguments, strict=False).module()
    assert isinstance(graph, torch.fx.GraphModule)
    choices |= use_linear_kernels(graph)
    options = {**_OPTIONS, **_kernel_options(choices)}
    key = cache_key(
        {
            "graph": graph.code,
            "constants": {name: _digest(t) for name, t in _constants(graph).items()},
            "arguments": [
                f"{t.dtype} {tuple(t.shape)} {t.stride()}" for part in arguments for t in part
            ],
            "options": {name: str(value) for name, value in options.items()},
            "torch": torch.__version__,
            "compiler": compiler_version(),
            "cpu": cpu_target(),
        }
    )
    folder = get_or_build(key, lambda folder: _compile(graph, arguments, options, folder))
    return sorted(folder.glob("piece/*")), sorted(choices, key=lambda choice: choice.op)


def _constants(graph: torch.fx.GraphModule) -> dict[str, torch.Tensor]:
    return {**dict(graph.named_parameters()), **dict(graph.named_buffers())}


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(
        tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
    ).hexdigest()


def _kernel_options(choices: set[Choice]) -> dict[str, Any]:
    """How compiled code calls our kernels: directly, where the graph uses them."""
    uses_linear = any(choice.chosen == LINEAR_KERNEL for choice in choices)
    return linear_inductor_options() if uses_linear else {}


def _compile(
    graph: torch.fx.GraphModule, arguments: tuple[Any, ...], options: dict[str, Any], folder: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own internals
        files: Any = torch._inductor.aot_compile(graph, arguments, options=options)
    (folder / "piece").mkdir()
    for file in files:
        shutil.copy2(str(file), folder / "piece")
