"""Runs lowered graphs on as many XLA:CPU devices as there are ranks, in a process without torch.

python run_hlo.py FOLDER, which holds:
  request.json             num_ranks; graphs: name -> parameters, outputs, aliases; steps: names
  GRAPH.hlo                the HLO of a graph
  rank<r>.safetensors      weights and initial caches of a rank, by parameter
  inputs.safetensors       "<step>.<input>"
  constants.safetensors    what no rank and no step changes, by parameter
Writes outputs.safetensors: "<step>.<rank>.<output>", and "<rank>.<cache>" after the last step.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    num_ranks = request["num_ranks"]
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={num_ranks}"
    from safetensors.numpy import load_file, save_file

    graphs = {
        name: (_compile((folder / f"{name}.hlo").read_bytes(), num_ranks), form)
        for name, form in request["graphs"].items()
    }
    ranks = [load_file(folder / f"rank{rank}.safetensors") for rank in range(num_ranks)]
    inputs = load_file(folder / "inputs.safetensors")
    constants = load_file(folder / "constants.safetensors")
    found: dict[str, Any] = {}
    for step, name in enumerate(request["steps"]):
        executable, form = graphs[name]
        given = {**constants, **{key: inputs[f"{step}.{key}"] for key in form["inputs"]}}
        arguments = [
            [{**rank, **given}[parameter] for rank in ranks] for parameter in form["parameters"]
        ]
        results = _run(executable, arguments)
        for number, values in enumerate(results):
            cache = form["aliases"].get(str(number))
            for rank, value in enumerate(values):
                if cache is not None:
                    ranks[rank][cache] = value
                else:
                    found[f"{step}.{rank}.{form['outputs'][number]}"] = value
    caches = {
        f"{r}.{name}": x for r, of in enumerate(ranks) for name, x in of.items() if "cache_" in name
    }
    save_file({**found, **caches}, folder / "outputs.safetensors")


def _compile(proto: bytes, num_ranks: int) -> Any:
    import jax
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jaxlib.mlir import ir

    text = xla_client._xla.mlir.hlo_to_stablehlo(proto)
    with mlir.make_ir_context():
        module = ir.Module.parse(text)
    options = xla_client.CompileOptions()
    options.num_replicas = num_ranks
    devices = xla_client.DeviceList(tuple(jax.devices()))
    return jax.devices()[0].client.compile_and_load(module, devices, options)


def _run(executable: Any, arguments: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Arguments and results are lists over parameters of lists over ranks."""
    import jax

    devices = jax.devices()
    # "Replicated" is the sharding whose pieces have the full shape; ranks may differ in values.
    every = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(devices), "rank"), jax.sharding.PartitionSpec()
    )
    placed = [
        jax.make_array_from_single_device_arrays(
            values[0].shape, every, list(map(jax.device_put, values, devices))
        )
        for values in arguments
    ]
    done = executable.execute_sharded(placed).disassemble_into_single_device_arrays()
    return [[np.asarray(value) for value in values] for values in done]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
