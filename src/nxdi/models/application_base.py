"""NeuronApplicationBase: a model's life outside the graph: config, weights, compile, save, load."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nxdi.config import InferenceConfig, NeuronConfig
from nxdi.config.activation_quantization import activation_quantization
from nxdi.config.pool import size_pool
from nxdi.config.quantization import WeightQuantization, weight_quantization
from nxdi.errors import ConfigError
from nxdi.graph.inputs import InputSpec
from nxdi.graph.plan import GraphPlan, plan_graphs
from nxdi.models.fused import GraphModels, choose_models
from nxdi.modules.kernel_weights import turn_weights
from nxdi.modules.quantization import (
    explaining_scales,
    put_scales,
    quantize_modules,
    quantize_state,
    take_scales,
    widen_state,
)
from nxdi.modules.quantization.activations import quantize_inputs
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.runtime import snapshot
from nxdi.runtime.artifact import Artifact
from nxdi.runtime.backend import Backend, Program, StepModule
from nxdi.runtime.backends.choice import make_backend
from nxdi.runtime.files import atomic_directory, locked
from nxdi.runtime.fingerprint import code_version
from nxdi.runtime.prequantized.source import WeightsSource, source_of
from nxdi.runtime.quantized import write_quantized
from nxdi.runtime.runner import Runner
from nxdi.runtime.weights import (
    check_weights,
    cut_for_rank,
    invoke_preshard_hooks,
    model_tensors,
    without_memory,
)
from nxdi.types import Phase

# Computed by the library itself, or derived by every model: never an error when a checkpoint brings
# them.
_IGNORED_WEIGHTS = ("rank_util.rank", "rotary_emb.inv_freq")


class NeuronApplicationBase:
    """A model folder, its config, and after `load` the runner of its graphs.

    `model_path` is a Hugging Face folder; without a config it may also be a compiled artefact,
    which knows its config and where its weights came from.
    """

    _model_cls: type[nn.Module]
    _config_cls: type[InferenceConfig] = InferenceConfig
    _STATE_DICT_MODEL_PREFIX = "model."

    def __init__(
        self,
        model_path: str | PathLike[str],
        config: InferenceConfig | None = None,
        neuron_config: NeuronConfig | None = None,
    ) -> None:
        self.model_path = Path(model_path)
        self.config = config if config is not None else self._find_config(neuron_config)
        self.neuron_config: NeuronConfig = self.config.neuron_config
        self.plan: GraphPlan = plan_graphs(self.neuron_config, self.extra_inputs())
        self.backend: Backend = make_backend(self.neuron_config)
        self._models: GraphModels = choose_models(self)
        self._runner: Runner | None = None
        if self.neuron_config.kv_cache_memory_bytes is not None:
            self._size_pool()

    @classmethod
    def get_config_cls(cls) -> type[InferenceConfig]:
        return cls._config_cls

    def extra_inputs(self) -> tuple[InputSpec, ...]:
        """What graphs take besides the inputs that follow from the NeuronConfig."""
        return ()

    def _find_config(self, neuron_config: NeuronConfig | None) -> InferenceConfig:
        config_cls = self.get_config_cls()
        if neuron_config is not None:
            return config_cls.from_pretrained(self.model_path, neuron_config)
        config = config_cls.load(self.model_path)
        self.model_path = Artifact(self.model_path).weights_source()
        return config

    def _size_pool(self) -> None:
        """Settle how many blocks the cache has, in a config of our own: the bytes of one are known.

        The config that was given has none yet, so what is counted is the block that takes padding.
        """
        program = self.program()
        with torch.device("meta"):
            caches = program.make_caches(program.build(Phase.DECODE))
        self.neuron_config = size_pool(self.neuron_config, sum(cache.nbytes for cache in caches))
        self.config = copy.copy(self.config)
        self.config.neuron_config = self.neuron_config
        self._models = choose_models(self)

    @property
    def is_tied(self) -> bool:
        """Whether lm_head has the embedding's weight."""
        return bool(getattr(self.config, "tie_word_embeddings", False))

    # Weights. The hooks below are NxDI's; most models need none of them.

    @staticmethod
    def load_hf_model(model_path: str | PathLike[str], **kwargs: Any) -> nn.Module:
        """The model as transformers has it: the reference of the accuracy tools."""
        from transformers import AutoModelForCausalLM

        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            model_path, trust_remote_code=False, **kwargs
        )
        return model

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        """Rename or reshape the tensors of a full checkpoint to those of the model."""
        return state_dict

    @staticmethod
    def update_state_dict_for_tied_weights(state_dict: dict[str, Tensor]) -> None:
        """Give lm_head the embedding's tensor, for models that tie them."""
        if "embed_tokens.weight" in state_dict:
            state_dict["lm_head.weight"] = state_dict["embed_tokens.weight"]

    def get_state_dict(self) -> dict[str, Tensor]:
        """The full checkpoint under the model's own names, memory-mapped."""
        source = self._weights_source()
        state = self._state(source, source.read())
        # What nxdi has stored itself is complete.
        return state if source.is_converted else {**state, **self.extra_state_dict()}

    def extra_state_dict(self) -> dict[str, Tensor]:
        """Tensors from files beside the checkpoint, under the model's own names."""
        return {}

    def extra_files(self) -> list[Path]:
        """The files beside the checkpoint that `extra_state_dict` reads."""
        return []

    def _weights_source(self) -> WeightsSource:
        return source_of(self.model_path, self.config, self.neuron_config)

    def _state(self, source: WeightsSource, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        if source.is_converted:
            return stored
        weights, scales = source.split(stored)
        state = self._converted(weights)
        if scales:
            with explaining_scales():
                scales = self._converted(scales)
        return put_scales(state, scales)

    def _converted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        prefix = self._STATE_DICT_MODEL_PREFIX
        state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        state = self.convert_hf_to_neuron_state_dict(state, self.config)
        if self.is_tied:
            self.update_state_dict_for_tied_weights(state)
        return {
            name: tensor for name, tensor in state.items() if not name.endswith(_IGNORED_WEIGHTS)
        }

    @classmethod
    def save_quantized_state_dict(
        cls, model_path: str | PathLike[str], config: InferenceConfig
    ) -> None:
        """Write the quantized weights of a model folder to `quantized_checkpoints_path`, a folder.

        Raises: ConfigError unless `config` has quantized=True and names that folder.
        """
        neuron = config.neuron_config
        if not neuron.quantized or neuron.quantized_checkpoints_path is None:
            raise ConfigError(
                "saving quantized weights needs quantized=True and quantized_checkpoints_path, the "
                "folder to write"
            )
        source = copy.copy(config)
        source.neuron_config = copy.copy(neuron)
        source.neuron_config.quantized_checkpoints_path = None
        _, full = cls(model_path, source).own_weights()
        with atomic_directory(Path(neuron.quantized_checkpoints_path)) as folder:
            write_quantized(folder, full)

    def rank_weights(self, ranks: tuple[int, ...]) -> list[dict[str, Tensor]]:
        """The weights of the given ranks.

        Raises: WeightError listing everything that does not fit.
        """
        wanted, full = self.checked_weights()
        return [cut_for_rank(wanted, full, rank) for rank in ranks]

    def checked_weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors the graphs want, and those of the full checkpoint, which fit."""
        return self._models.checked_weights()

    def own_weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`checked_weights` of this model alone."""
        model = self.own_model(Phase.DECODE)
        full = self._presharded(model, self.get_state_dict())
        stored, scheme = self.stored_quantization(), self.weight_quantization()
        if stored is not None:
            full = widen_state(model, full, stored)
        if scheme is not None:
            full = quantize_state(model, full, scheme)
        wanted = model_tensors(model)
        check_weights(wanted, full)
        return wanted, full

    def _presharded(self, model: nn.Module, full: dict[str, Tensor]) -> dict[str, Tensor]:
        scales = take_scales(full)
        invoke_preshard_hooks(model, full)
        if scales:
            with explaining_scales():
                invoke_preshard_hooks(model, scales)
        return put_scales(full, scales)

    def stored_scales(self, model: nn.Module) -> dict[str, Tensor]:
        """The scales of the checkpoint by the names of `model`'s weights, without their values."""
        source = self._weights_source()
        on_meta = {name: tensor.to("meta") for name, tensor in source.read().items()}
        return take_scales(self._presharded(model, self._state(source, on_meta)))

    # Building.

    def build(self, phase: Phase) -> nn.Module:
        """The module of one phase with one rank's shapes, on the meta device: without memory."""
        return self._models.build(phase)

    def own_model(self, phase: Phase) -> nn.Module:
        """`build` of this model alone."""
        scheme, config = self.weight_quantization(), self._config_for(phase)
        with without_memory(), tensor_parallel(self.neuron_config.tp_degree):
            model = type(self)._model_cls(config).eval()
            if scheme is not None:
                quantize_modules(model, scheme, self.is_tied)
            inputs = activation_quantization(config.neuron_config)
            if inputs is not None:
                quantize_inputs(model, inputs)
            turn_weights(model, config.neuron_config)
        return model

    def weight_quantization(self) -> WeightQuantization | None:
        """How weights are held; None: as the checkpoint of an unquantized model has them."""
        return weight_quantization(self._config_for(Phase.DECODE).neuron_config)

    def stored_quantization(self) -> WeightQuantization | None:
        """How the weights of the checkpoint are quantized; None: they are not."""
        return self._weights_source().scheme(self._config_for(Phase.DECODE).neuron_config)

    def _config_for(self, phase: Phase) -> InferenceConfig:
        config = copy.copy(self.config)
        config.neuron_config = self.neuron_config.for_phase(phase, self.backend.name)
        return config

    def program(self) -> Program:
        """What a backend needs to know of this model."""

        def build(phase: Phase) -> StepModule:
            return self.build(phase)  # type: ignore[return-value]  # NeuronBaseModel has that form

        return Program(build, self.plan, self.get_compiler_args())

    def get_compiler_args(self) -> str | None:
        """Arguments of the Neuron compiler; None: those chosen for each graph."""
        return None

    # Compile and load.

    def compile(
        self, compiled_model_path: str | PathLike[str], progress: bool | None = None
    ) -> None:
        """Compile every planned graph and write the artefact; an older one is replaced as a whole.

        progress: show a progress bar (default: on a terminal).
        Raises: WeightError if the checkpoint does not fit; ArtifactError on a disk error.
        """
        self.compile_if(lambda: True, Path(compiled_model_path), progress)

    def compile_if(
        self, is_needed: Callable[[], bool], path: Path, progress: bool | None = None
    ) -> None:
        """`compile` to `path` if `is_needed()`. Under torchrun, one process does both for all."""

        def compile_here() -> None:
            if not is_needed():
                return
            self.checked_weights()
            with locked(path), tensor_parallel(self.neuron_config.tp_degree):
                if is_needed():  # nobody compiled while we waited
                    Artifact(path).write(self, progress)

        self.backend.world().once(compile_here)

    def load(
        self, compiled_model_path: str | PathLike[str], skip_warmup: bool | None = None
    ) -> None:
        """Load the graphs and weights of an artefact made by `compile`.

        Raises: ArtifactError if it is damaged or was built for something else, with the difference.
        """
        world = self.backend.world()
        executables = Artifact(Path(compiled_model_path)).load(self, world.local_ranks)
        runner = Runner(self.plan, world, executables)
        skip = self.neuron_config.skip_warmup if skip_warmup is None else skip_warmup
        if not skip:
            runner.warm_up()
        self._runner = runner
        snapshot.register_snapshot_hooks_from_env(self)

    register_snapshot_hooks = snapshot.register_snapshot_hooks
    unregister_snapshot_hooks = snapshot.unregister_snapshot_hooks

    @property
    def runner(self) -> Runner:
        """Raises: ConfigError before `load`."""
        if self._runner is None:
            raise ConfigError(
                "the model is not loaded; call model.compile(path) once, then model.load(path)"
            )
        return self._runner

    @property
    def stores_weights(self) -> bool:
        """Whether the artefact carries each rank's weights."""
        return self.neuron_config.save_sharded_checkpoint

    @property
    def num_ranks(self) -> int:
        return self.neuron_config.tp_degree

    def checkpoint_files(self) -> list[Path]:
        return self._models.checkpoint_files()

    def own_files(self) -> list[Path]:
        """`checkpoint_files` of this model alone."""
        return [*self._weights_source().files(), *self.extra_files()]

    def identity(self) -> dict[str, Any]:
        """What decides whether a compiled artefact serves this model."""
        return {
            "library_version": code_version(*self._models.classes()),
            "torch_version": torch.__version__,
            "platform": self.backend.platform(),
            "backend": self.backend.name,
            "config": json.loads(self.config.to_json_string()),
        }
