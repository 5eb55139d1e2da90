"""A compiled model on its devices: weights and caches of all local ranks, steps by graph name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nxdi.errors import ArtifactError
from nxdi.graph.plan import GraphSpec
from nxdi.runtime.backend import Program, StepModule
from nxdi.runtime.backends.neuron.build import INDEX_FILE, MODEL_FILE
from nxdi.runtime.backends.neuron.wrap import MODEL, cache_name
from nxdi.types import Phase


class NeuronRanks:
    """All ranks of this process as one executable: the device runs them together."""

    def __init__(self, model: Any, caches: Mapping[str, Tensor], num_ranks: int) -> None:
        """caches: what one rank's caches are empty, by name."""
        self._model, self._empty, self._num_ranks = model, caches, num_ranks

    def __call__(self, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self._model(model_name=spec.name, **inputs)
        results = [found] if isinstance(found, Tensor) else found
        return dict(zip(spec.outputs, results, strict=True))

    def reset(self) -> None:
        """Zero every cache of every local rank."""
        for rank in range(self._num_ranks):
            for name, zeros in self._empty.items():
                self._model.write_to_neuron_buffer(zeros, name, rank)

    @property
    def caches(self) -> list[Tensor]:
        """Copies of the first local rank's caches."""
        return [self._model.read_from_neuron_buffer(name, 0) for name in self._empty]


def load_ranks(
    nxd: Any,
    program: Program,
    folder: Path,
    weights: Sequence[Mapping[str, Tensor]],
    start_rank: int,
) -> NeuronRanks:
    """The model in `folder` on its devices.

    weights: by name, for each local rank; start_rank: the first of these.
    Raises: ArtifactError if the SDK cannot load the model.
    """
    template = program.build(Phase.DECODE)
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    names = sorted({name for graph in index.values() for name in graph["weights"]})
    model = _load_model(nxd, folder / MODEL_FILE, start_rank, len(weights))
    model.set_weights([_device_weights(template, names, of_rank) for of_rank in weights])
    model.to_neuron()
    empty = enumerate(program.make_caches(template))
    return NeuronRanks(model, {cache_name(i): zeros for i, zeros in empty}, len(weights))


def _load_model(nxd: Any, file: Path, start_rank: int, num_ranks: int) -> Any:
    try:
        model = nxd.NxDModel.load(str(file), start_rank, num_ranks)
    except Exception as error:  # TorchScript and the runtime raise errors of many types
        raise ArtifactError(
            f"{file} cannot be loaded: {error}; compile again with this SDK"
        ) from error
    # The SDK warns, and hands out something else, where another of its versions wrote the file.
    if not isinstance(model, nxd.NxDModel):
        raise ArtifactError(f"{file} was written by another SDK; compile again with this one")
    return model


def _device_weights(
    template: StepModule, names: list[str], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the traced graphs call weights: parameters of the checkpoint, and computed buffers."""
    assert isinstance(template, nn.Module)
    known = {**dict(template.named_buffers()), **weights}
    return {name: known[name.removeprefix(MODEL)] for name in names}
