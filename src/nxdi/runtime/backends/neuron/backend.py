"""NeuronBackend: what the other files of this folder do, behind the Backend protocol."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nxdi import env
from nxdi.config import MoENeuronConfig, NeuronConfig, kernel_options, targets
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.kernels.neuron import candidates  # noqa: F401  registers the kernels
from nxdi.kernels.registry import Choice, platform
from nxdi.parallel_layers.groups import DeviceWorld, World
from nxdi.parallel_layers.xla_collectives import register_xla_kernels
from nxdi.runtime.backend import Program, Report
from nxdi.runtime.backends.neuron import flags, probe
from nxdi.runtime.backends.neuron.build import build_model
from nxdi.runtime.backends.neuron.run import NeuronRanks, load_ranks
from nxdi.types import Phase


class NeuronBackend:
    """Graphs for the device that the config targets; compiling needs the SDK, but no device.

    Raises: ConfigError, UnsupportedError if the config asks for what the target does not have.
    """

    name = "neuron"

    def __init__(self, config: NeuronConfig) -> None:
        self._config = config
        self.target = targets.find_target(_target_name(config))
        # Without a target the config cannot know the device's default, and so has 1.
        is_chosen = config.target is not None or config.logical_nc_config > 1
        asked = config.logical_nc_config if is_chosen else None
        asked = env.neuron_logical_size() or asked
        self.logical_size = targets.choose_logical_size(self.target, asked)
        targets.check_ranks(self.target, self.logical_size, config.local_ranks_size)

    def platform(self) -> str:
        """The target, and the versions that a compiled model is tied to."""
        versions = probe.find_sdk().versions
        tied = [f"{name} {versions[name]}" for name in ("torch-neuronx", "neuronx-distributed")]
        return ", ".join([f"{self.target.name} lnc{self.logical_size}", *tied])

    def compiler_version(self) -> str:
        return f"neuronx-cc {probe.find_sdk().versions['neuronx-cc']}"

    def world(self) -> World:
        """All ranks of this process, which the device runs together."""
        config = self._config
        return DeviceWorld(config.world_size, config.start_rank_id, config.local_ranks_size)

    def compile(self, program: Program, folder: Path, report: Report) -> list[Choice]:
        self._check_memory(program)
        nxd, options, own = probe.find_sdk().nxd, self._options(), program.compiler_args
        args = {
            spec.name: flags.compiler_args(flags.Role(spec.tag), options, own)
            for spec in program.plan.graphs
        }
        register_xla_kernels()
        kept = env.neuron_workdir()
        workdir = kept or Path(tempfile.mkdtemp(prefix="nxdi-neuron-"))
        environment, asked = flags.compile_env(self.target.name), kernel_options(self._config)
        with env.defaults(environment), platform("neuron", asked) as choices:
            state = nxd.NxDParallelState(
                world_size=self._config.world_size,
                tensor_model_parallel_size=self._config.tp_degree,
                lnc_size=self.logical_size,
            )
            build_model(nxd, program, state, args, folder, workdir, report)
        # A failed compile leaves its files, with the log that the error names.
        if kept is None:
            shutil.rmtree(workdir)
        return sorted(choices)

    def load(
        self, program: Program, folder: Path, weights: Sequence[Mapping[str, Tensor]]
    ) -> list[NeuronRanks]:
        if not probe.neuron_devices():
            raise UnsupportedError(
                f"there is no Neuron device here to run graphs for {self.target.name} on; load "
                "them on an instance that has one, or use backend='cpu'"
            )
        config, environment = self._config, flags.runtime_env(self._options())
        if config.local_ranks_size < config.world_size:
            environment |= flags.node_env(config.local_ranks_size, env.neuron_root())
        env.set_defaults(environment)
        nxd = probe.find_sdk().nxd
        return [load_ranks(nxd, program, folder, weights, config.start_rank_id)]

    def _options(self) -> flags.CompileOptions:
        config = self._config
        moe = config if isinstance(config, MoENeuronConfig) else None
        return flags.CompileOptions(
            is_moe=moe is not None,
            is_expert_parallel=moe is not None and moe.is_expert_parallel,
            logical_size=self.logical_size,
            prompt_len=config.max_context_length,
            seq_len=config.max_length,
            tiling_factor=config.cc_pipeline_tiling_factor,
            target=self.target.name,
            scratchpad_page_mib=config.scratchpad_page_size,
            spills_by_dge=config.enable_spill_reload_dge,
            dma_order=config.dma_order_config,
            notifies_completion=config.enable_output_completion_notifications,
        )

    def _check_memory(self, program: Program) -> None:
        module: Any = program.build(Phase.DECODE)
        weights = sum(tensor.nbytes for tensor in module.state_dict().values())
        caches = sum(
            math.prod(shape) * dtype.itemsize
            for shape, dtype in zip(module.cache_shapes(), module.cache_dtypes(), strict=True)
        )
        targets.check_memory(self.target, self.logical_size, weights + caches)


def _target_name(config: NeuronConfig) -> str:
    named = env.neuron_target()
    if named is not None and config.target not in (None, named):
        raise ConfigError(
            f"target={config.target!r} contradicts NEURON_PLATFORM_TARGET_OVERRIDE={named}; unset "
            "one of them"
        )
    return named or config.target or probe.device_target()
