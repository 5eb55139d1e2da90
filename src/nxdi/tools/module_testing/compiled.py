"""A module compiled as the cpu backend compiles its pieces, with its weights as inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from nxdi.runtime.backends.cpu.compiler import compile_piece
from nxdi.runtime.backends.cpu.pieces import tensors_of


def compile_module(module: nn.Module, example: tuple[Tensor, ...]) -> Callable[..., Any]:
    """The module as native code that takes tensors like `example`."""
    from torch._inductor.package.package import package_aoti

    pure, weights = _Pure(module), list(tensors_of(module).values())
    # Copies: a tensor given twice is two inputs.
    files, _ = compile_piece(pure, ([x.clone() for x in example], weights), module)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "module.pt2"
        package_aoti(str(package), {"module": [str(file) for file in files]})
        loader = torch._C._aoti.AOTIModelPackageLoader(str(package), "module", False, 1, -1)

    def run(*inputs: Tensor) -> Any:
        return pytree.tree_unflatten(loader.boxed_run([*inputs, *weights]), pure.structure)

    return run


class _Pure(nn.Module):
    """A module whose weights are inputs; `structure` is that of its result, known once traced."""

    structure: Any

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._names = list(tensors_of(module))
        # In a tuple, so that its parameters do not become constants of the graph.
        self._hidden = (module,)

    def forward(self, inputs: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        named = dict(zip(self._names, weights, strict=True))
        result = functional_call(self._hidden[0], named, tuple(inputs))
        leaves, self.structure = pytree.tree_flatten(result)
        # AOTInductor returns the wrong one where a result is an input itself.
        given = {id(tensor) for tensor in (*inputs, *weights)}
        return [leaf.clone() if id(leaf) in given else leaf for leaf in leaves]
