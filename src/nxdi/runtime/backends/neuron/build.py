"""From graphs to one loadable model, over neuronx_distributed's V2 interface.

Two seams: `trace_graph` (module -> HLO) and `compile_graph` (HLO -> NEFF). Everything else is
bookkeeping around them. `nxd` is the neuronx_distributed module, which callers pass in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nxdi.errors import ArtifactError
from nxdi.graph.padding import only_padding
from nxdi.graph.plan import GraphSpec
from nxdi.runtime.backend import Program, Report
from nxdi.runtime.backends.neuron.wrap import make_step

MODEL_FILE = "model.pt"
INDEX_FILE = "graphs.json"
_LOG_NAME = "log-neuron-cc.txt"
_LOG_LINES = 20  # of a failed compiler's log, in the error


def trace_graph(nxd: Any, program: Program, spec: GraphSpec) -> Any:
    """HLO of one graph, with its weights and caches as parameters and its caches aliased."""
    step = make_step(program, spec)
    # Each graph has a module of its own, so nothing need survive the trace.
    return nxd.trace.functions.trace(step, kwargs=only_padding(spec), preserve_parameters=False)


def compile_graph(nxd: Any, traced: Any, name: str, workdir: Path, args: str) -> Any:
    """NEFF of one graph.

    Raises: ArtifactError with the end of the compiler's log.
    """
    try:
        return nxd.trace.functions.compile(
            traced.hlo, traced.metaneff, compiler_workdir=workdir, compiler_args=args, key=name
        )
    except Exception as error:  # the SDK raises what its subprocess and protobuf code raise
        raise ArtifactError(_failure(name, workdir / name, error)) from error


def build_model(
    nxd: Any,
    program: Program,
    state: Any,
    args: Mapping[str, str],
    folder: Path,
    workdir: Path,
    report: Report,
) -> None:
    """Trace and compile every graph, and write the model and its index into `folder`.

    state: an NxDParallelState, in which modules are traced for all its ranks by this one process;
    args: of the compiler, by graph.
    Weight-layout optimisation is left off: the SDK builds its layout transformer for one physical
    core per rank whatever logical_nc_config says, so with two its weights would be laid out wrong.
    """
    graphs = program.plan.graphs
    # The SDK compares the inputs of graphs only up to the shorter list.
    names = {tuple(item.name for item in spec.inputs) for spec in graphs}
    assert len(names) == 1, "graphs of one model take different inputs"
    model, index = nxd.NxDModel(world_size=state.world_size), {}
    with state:
        for done, spec in enumerate(graphs):
            report(done, len(graphs), spec.name)
            traced = trace_graph(nxd, program, spec)
            compiled = compile_graph(nxd, traced, spec.name, workdir, args[spec.name])
            model.add(spec.name, traced, compiled)
            index[spec.name] = {
                "compiler_args": args[spec.name],
                "hlo_sha256": hashlib.sha256(traced.hlo.SerializeToString()).hexdigest(),
                "weights": sorted(traced.weight_name_to_idx),
            }
        report(len(graphs), len(graphs), MODEL_FILE)
        model.save(str(folder / MODEL_FILE))
    text = json.dumps(index, indent=1, sort_keys=True)
    (folder / INDEX_FILE).write_text(text + "\n", encoding="utf-8")


def _failure(name: str, workdir: Path, error: Exception) -> str:
    reason = f"neuronx-cc failed on {name}: {error.__cause__ or error}"
    logs = sorted(workdir.rglob(_LOG_NAME), key=lambda path: path.stat().st_mtime)
    if not logs:
        return f"{reason}; it wrote no {_LOG_NAME} below {workdir}"
    lines = logs[-1].read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return "\n  ".join([f"{reason}; its log is {logs[-1]}, which ends with:", *lines])
