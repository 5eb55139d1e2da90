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
from nxdi.config import NeuronConfig, targets
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.graph.plan import GraphSpec
from nxdi.kernels.registry import Choice, platform
from nxdi.parallel_layers.groups import DeviceWorld, World
from nxdi.parallel_layers.xla_collectives import register_xla_kernels
from nxdi.runtime.backend import Program
from nxdi.runtime.backends.neuron import flags, probe
from nxdi.runtime.backends.neuron.build import Report, build_model
from nxdi.runtime.backends.neuron.run import NeuronRanks, load_ranks
from nxdi.types import Phase

_ROLES = {
    Phase.PREFILL: flags.Role.CONTEXT_ENCODING,
    Phase.DECODE: flags.Role.TOKEN_GENERATION,
}


class NeuronBackend:
    """Graphs for the device that the config targets; compiling needs the SDK, but no device.

    Raises: ConfigError, UnsupportedError if the config asks for what the target does not have.
    """

    name = "neuron"

    def __init__(self, config: NeuronConfig) -> None:
        self._config = config
        named = env.neuron_target() or config.target
        self.target = targets.find_target(named or probe.device_target())
        # Without a target the config cannot know the device's default, and so has 1.
        is_chosen = config.target is not None or config.logical_nc_config > 1
        asked = config.logical_nc_config if is_chosen else None
        asked = env.neuron_logical_size() or asked
        self.logical_size = targets.choose_logical_size(self.target, asked)
        _check_nodes(config)
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
        nxd = probe.find_sdk().nxd
        register_xla_kernels()
        kept = env.neuron_workdir()
        workdir = kept or Path(tempfile.mkdtemp(prefix="nxdi-neuron-"))
        environment = flags.compile_env(self.target.name)
        with env.defaults(environment), platform("neuron") as choices:
            state = nxd.NxDParallelState(
                world_size=self._config.world_size,
                tensor_model_parallel_size=self._config.tp_degree,
                lnc_size=self.logical_size,
            )
            args_for = self._args_for(program)
            build_model(nxd, program, state, args_for, folder, workdir, report)
        # A failed compile leaves its files, with the log that the error names.
        if kept is None:
            shutil.rmtree(workdir)
        return sorted(choices, key=lambda choice: (choice.op, choice.chosen))

    def load(
        self, program: Program, folder: Path, weights: Sequence[Mapping[str, Tensor]]
    ) -> list[NeuronRanks]:
        node = self._node()
        if not probe.neuron_devices():
            raise UnsupportedError(
                f"there is no Neuron device here to run graphs for {self.target.name} on; load "
                "them on an instance that has one, or use backend='cpu'"
            )
        env.set_defaults(flags.runtime_env(self._options(), node))
        start_rank = self._config.start_rank_id if node is not None else None
        return [load_ranks(probe.find_sdk().nxd, program, folder, weights, start_rank)]

    def _node(self) -> flags.Node | None:
        """This node among several; None if all ranks are here."""
        config = self._config
        if config.local_ranks_size == config.world_size:
            return None
        root = env.neuron_root()
        if root is None:
            raise ConfigError(
                f"local_ranks_size={config.local_ranks_size} of world_size={config.world_size} "
                "ranks are here, but not where all meet; set NEURON_RT_ROOT_COMM_ID=host:port"
            )
        return flags.Node(config.local_ranks_size, root)

    def _args_for(self, program: Program) -> Any:
        options, own = self._options(), program.compiler_args

        def args_for(spec: GraphSpec) -> str:
            if own is not None:
                return flags.with_logical_size(own, options)
            return flags.compiler_args(_ROLES[spec.phase], options)

        return args_for

    def _options(self) -> flags.CompileOptions:
        config = self._config
        return flags.CompileOptions(
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
        caches = sum(map(math.prod, module.cache_shapes())) * program.cache_dtype.itemsize
        targets.check_memory(self.target, self.logical_size, weights + caches)


def _check_nodes(config: NeuronConfig) -> None:
    """Raises: ConfigError unless this process has some of exactly tp_degree ranks."""
    first, local, world = config.start_rank_id, config.local_ranks_size, config.world_size
    if world != config.tp_degree:
        raise ConfigError(
            f"world_size={world} must be tp_degree={config.tp_degree}, the ranks of all nodes; "
            "leave it out"
        )
    if local < 1 or first < 0 or first + local > world or first % local or world % local:
        raise ConfigError(
            f"start_rank_id={first} with local_ranks_size={local} is not one of equal parts of "
            f"world_size={world}; node n of N has start_rank_id = n * world_size / N"
        )
