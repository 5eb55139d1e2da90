"""CpuBackend: compile the pieces of every graph into one package; run a step as a list of calls."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nxdi.kernels.cpu.onednn  # noqa: F401  defines an operator that loaded graphs call
from nxdi.errors import ArtifactError
from nxdi.graph.plan import GraphSpec
from nxdi.kernels.cpu.library import library_path, load_library, uses_library
from nxdi.kernels.registry import Choice, below, check_strict
from nxdi.parallel_layers.groups import World
from nxdi.runtime.backend import Program, Report, StepModule
from nxdi.runtime.backends.cpu.pieces import (
    Part,
    Piece,
    example_arguments,
    head_outputs,
    plan_parts,
    tensors_of,
)
from nxdi.runtime.backends.cpu.target import compiler_version, cpu_target
from nxdi.runtime.host_world import host_world
from nxdi.types import Phase

_PACKAGE = "graphs.pt2"
_INDEX = "pieces.json"
_KERNEL_LIBRARY = "kernels/kernels.so"


class CpuBackend:
    """Ahead-of-time compiled graphs for this type of CPU."""

    name = "cpu"

    def __init__(self, num_ranks: int = 1, strict_kernels: bool = False) -> None:
        self._num_ranks, self._strict_kernels = num_ranks, strict_kernels

    def platform(self) -> str:
        return cpu_target()

    def compiler_version(self) -> str:
        return compiler_version()

    def compile(self, program: Program, folder: Path, report: Report) -> list[Choice]:
        from torch._inductor.package.package import package_aoti

        from nxdi.runtime.backends.cpu.compiler import compile_piece

        models = {phase: program.build(phase) for phase in program.plan.phases}
        work, paths = _distinct_parts(program, models)
        compiled: dict[str, Any] = {}  # package entry -> its files
        names: dict[str, str] = {}  # piece -> the package entry that holds its code
        choices: set[Choice] = set()
        for done, (name, (spec, part)) in enumerate(work.items()):
            report(done, len(work), name)
            model = models[spec.phase]
            piece = Piece(part)
            arguments = example_arguments(model, part, spec)
            files, made = compile_piece(piece, arguments, part.owner)
            placed = {choice for path in paths[name] for choice in below(path, made)}
            if self._strict_kernels:
                check_strict(placed)
            choices |= placed
            entry = files[0].parent.parent.name
            names[name] = entry
            compiled[entry] = [str(file) for file in files]
        report(len(work), len(work), "package")
        package_aoti(str(folder / _PACKAGE), compiled)
        if uses_library(choices):
            # The artefact carries the kernels its graphs call, so that loading needs no compiler.
            (folder / _KERNEL_LIBRARY).parent.mkdir()
            shutil.copy2(library_path(), folder / _KERNEL_LIBRARY)
        (folder / _INDEX).write_text(json.dumps(names, indent=1, sort_keys=True), encoding="utf-8")
        return sorted(choices)

    def world(self) -> World:
        return host_world(self._num_ranks)

    def load(
        self, program: Program, folder: Path, weights: Sequence[Mapping[str, Tensor]]
    ) -> list[CpuRank]:
        return [self._load(program, folder, of_rank) for of_rank in weights]

    def _load(self, program: Program, folder: Path, weights: Mapping[str, Tensor]) -> CpuRank:
        names = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        if (folder / _KERNEL_LIBRARY).is_file():
            load_library(folder / _KERNEL_LIBRARY)
        models = {}
        for phase in program.plan.phases:
            models[phase] = program.build(phase)
            models[phase].load_state_dict(weights, strict=True, assign=True)
        return CpuRank(program, models, folder / _PACKAGE, names)


def _distinct_parts(
    program: Program, models: Mapping[Phase, StepModule]
) -> tuple[dict[str, tuple[GraphSpec, Part]], dict[str, list[str]]]:
    """Each piece once, with a part that shows how it is called, and what it computes."""
    work: dict[str, tuple[GraphSpec, Part]] = {}
    paths: dict[str, list[str]] = defaultdict(list)
    for spec in program.plan.graphs:
        for part in plan_parts(models[spec.phase], spec):
            work.setdefault(part.piece, (spec, part))
            paths[part.piece].append(part.path)
    return work, paths


class _Call:
    """A compiled piece bound to the weights and caches of one part."""

    def __init__(
        self, loader: torch._C._aoti.AOTIModelPackageLoader, part: Part, caches: Sequence[Tensor]
    ) -> None:
        self.loader, self.input_names = loader, [item.name for item in part.inputs]
        self.bound = [*caches[part.caches], *tensors_of(part.owner).values()]

    def __call__(self, leading: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> list[Tensor]:
        step = [inputs[name] for name in self.input_names]
        results: list[Tensor] = self.loader.boxed_run([*leading, *step, *self.bound])
        return results


class CpuRank:
    """The graphs of one rank.

    Each rank has loaders of its own: a loader runs one call at a time, and ranks wait for each
    other inside calls.
    """

    def __init__(
        self,
        program: Program,
        models: Mapping[Phase, StepModule],
        package: Path,
        names: Mapping[str, str],
    ) -> None:
        self._models = models
        self.caches = program.make_caches(models[Phase.DECODE])
        loaders = {entry: _open(package, entry) for entry in set(names.values())}
        self._steps = {
            spec.name: [
                _Call(loaders[names[part.piece]], part, self.caches)
                for part in plan_parts(models[spec.phase], spec)
            ]
            for spec in program.plan.graphs
        }

    def __call__(self, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        model, calls = self._models[spec.phase], self._steps[spec.name]
        with torch.no_grad():
            if not model.composes:
                return dict(zip(spec.outputs, calls[0]([], inputs), strict=True))
            x, after = model.embed(inputs), {}
            for index, call in enumerate(calls[:-1]):
                (x,) = call([x], inputs)
                if index in model.feature_layers:
                    after[index] = x
            results = calls[-1]([model.last_hidden(x, inputs)], inputs)
            outputs = dict(zip(head_outputs(spec), results, strict=True))
            return {**outputs, **model.feature_outputs(after)}

    def reset(self) -> None:
        for cache in self.caches:
            cache.zero_()


def _open(package: Path, entry: str) -> torch._C._aoti.AOTIModelPackageLoader:
    try:
        return torch._C._aoti.AOTIModelPackageLoader(str(package), entry, False, 1, -1)
    except RuntimeError as error:
        raise ArtifactError(
            f"{package} cannot be loaded: {error}; compile again with model.compile(path)"
        ) from error
