"""A compiled model on disk: written by a backend, loaded only if it is whole and fits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from nxdi.errors import ArtifactError, WeightError
from nxdi.graph.plan import GraphPlan
from nxdi.kernels.registry import by_kernel
from nxdi.runtime import store
from nxdi.runtime.backend import Backend, Program, RankExecutable
from nxdi.runtime.checkpoint import read_safetensors, write_safetensors
from nxdi.runtime.progress import Progress
from nxdi.runtime.weights import check_rank_weights, model_tensors
from nxdi.types import Phase

_CONFIG = "neuron_config.json"
# Differences here change neither graphs nor results. The backend is compared after "auto" is
# resolved, and the device and its cores per rank as the platform; each node has its own ranks.
_SAME_ANYWAY = (
    "config.transformers_version",
    "config.metadata",
    "config.neuron_config.async_mode",
    "config.neuron_config.backend",
    "config.neuron_config.lm_head_pad",
    "config.neuron_config.local_ranks_size",
    "config.neuron_config.medusa_heads_path",
    "config.neuron_config.logical_nc_config",
    "config.neuron_config.logical_neuron_cores",
    "config.neuron_config.on_cpu",
    "config.neuron_config.overrides_torch_dtype",
    "config.neuron_config.quantized_checkpoints_path",
    "config.neuron_config.skip_warmup",
    "config.neuron_config.start_rank_id",
    "config.neuron_config.target",
)
# Of a draft model in the graphs as well; its checkpoint is compared by its content.
_DRAFT = "config.fused_spec_config.draft_"
_IRRELEVANT = (
    *_SAME_ANYWAY,
    *(f"{_DRAFT}{name}" for name in (*_SAME_ANYWAY, "model_path")),
)


class Application(Protocol):
    """What an artefact needs to know of the model it is made for."""

    model_path: Path
    plan: GraphPlan
    backend: Backend

    def program(self) -> Program: ...
    def build(self, phase: Phase) -> nn.Module: ...
    def identity(self) -> dict[str, Any]: ...
    def rank_weights(self, ranks: tuple[int, ...]) -> list[dict[str, Tensor]]: ...
    def checkpoint_files(self) -> list[Path]: ...
    @property
    def stores_weights(self) -> bool: ...
    @property
    def num_ranks(self) -> int: ...


class Artifact:
    """The artefact at one path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def weights_source(self) -> Path:
        """The folder of the checkpoint it was compiled for.

        Raises: ArtifactError if there is no artefact.
        """
        return Path(store.read_manifest(self.path).weights["source"])

    def write(self, app: Application, progress: bool | None) -> None:
        """Compile every graph of `app` and replace whatever artefact is at the path."""
        identity = app.identity()
        kernels: list[dict[str, Any]] = []  # filled by `populate`, before the manifest is written

        def populate(folder: Path) -> None:
            text = json.dumps(identity["config"], indent=2, sort_keys=True)
            (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")
            with Progress("compile", progress) as bar:
                choices = app.backend.compile(app.program(), folder, bar.report)
            kernels.extend(
                {
                    "op": choice.op,
                    "chosen": choice.chosen,
                    "is_reference": choice.is_reference,
                    "refused": dict(choice.refused),
                    "layers": list(layers),
                }
                for choice, layers in by_kernel(choices).items()
            )
            if app.stores_weights:
                self._write_weights(app, folder)

        weights = {
            "fingerprint": store.weights_fingerprint(app.checkpoint_files()),
            "source": str(app.model_path.resolve()),
            "sharded": app.stores_weights,
        }
        graphs = [graph.to_dict() for graph in app.plan.graphs]
        compiler = app.backend.compiler_version()
        manifest = store.Manifest(
            **identity, compiler_version=compiler, graphs=graphs, kernels=kernels, weights=weights
        )
        store.write_artifact(self.path, manifest, populate)

    def load(self, app: Application, ranks: tuple[int, ...]) -> Sequence[RankExecutable]:
        """The graphs of the given ranks with their weights. Raises: ArtifactError, WeightError."""
        return store.load_artifact(self.path, lambda manifest: self._load(app, manifest, ranks))

    def _load(
        self, app: Application, manifest: store.Manifest, ranks: tuple[int, ...]
    ) -> Sequence[RankExecutable]:
        self._check(app, manifest)
        program = app.program()
        weights = self._weights(app, manifest, ranks)
        return app.backend.load(program, self.path, weights)

    def check(self, app: Application) -> None:
        """Raises: ArtifactError unless an undamaged artefact made for exactly this is here."""
        self._check(app, store.open_artifact(self.path))

    def is_whole(self) -> bool:
        """Whether an undamaged artefact is here, whatever it was made for."""
        try:
            store.open_artifact(self.path)
        except ArtifactError:
            return False
        return True

    def _check(self, app: Application, manifest: store.Manifest) -> None:
        fingerprint = self._fingerprint(app, manifest)
        store.check_matches(
            manifest, {**app.identity(), "weights_fingerprint": fingerprint}, _IRRELEVANT
        )

    def _fingerprint(self, app: Application, manifest: store.Manifest) -> str | None:
        """Of the checkpoint; None if it is gone and the artefact has weights of its own."""
        try:
            files = app.checkpoint_files()
        except WeightError:
            if manifest.weights["sharded"]:
                return None
            raise
        return store.weights_fingerprint(files)

    def _weights(
        self, app: Application, manifest: store.Manifest, ranks: tuple[int, ...]
    ) -> list[dict[str, Tensor]]:
        if not manifest.weights["sharded"]:
            return app.rank_weights(ranks)
        wanted = model_tensors(app.build(Phase.DECODE))
        found = []
        for rank in ranks:
            found.append(read_safetensors(self.path / _rank_file(rank)))
            check_rank_weights(wanted, found[-1], rank)
        return found

    def _write_weights(self, app: Application, folder: Path) -> None:
        (folder / "weights").mkdir()
        ranks = tuple(range(app.num_ranks))
        for rank, weights in zip(ranks, app.rank_weights(ranks), strict=True):
            write_safetensors(folder / _rank_file(rank), weights)


def _rank_file(rank: int) -> str:
    return f"weights/tp{rank}_sharded_checkpoint.safetensors"
