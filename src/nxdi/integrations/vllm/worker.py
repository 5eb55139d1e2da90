"""The worker: what vLLM's engine calls, in the order in which it does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.utils.torch_utils import set_random_seed
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheSpec
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.integrations.vllm.layout import FIRST_BLOCK, num_cache_blocks
from nxdi.integrations.vllm.loading import load_model, load_proposer
from nxdi.integrations.vllm.runner import ModelRunner

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
    from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput


class NxdiWorker(WorkerBase):
    """One process, in which nxdi has all ranks and the cache is part of the graphs."""

    def init_device(self) -> None:
        self.device = torch.device("cpu")
        set_random_seed(self.model_config.seed)
        # vLLM's engine asks for these groups, and nothing is ever sent in them.
        init_distributed_environment(1, 0, self.distributed_init_method, 0, "gloo")
        ensure_model_parallel_initialized(1, 1)

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        if load_dummy_weights:
            raise UnsupportedError("nxdi loads real weights only; leave elastic scaling out")
        start = time.perf_counter()
        model = load_model(self.vllm_config)
        proposer = load_proposer(self.vllm_config, model)
        self.runner = ModelRunner(model, self.vllm_config, proposer)
        self._load_time = time.perf_counter() - start

    # The cache.

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        spec = FullAttentionSpec(
            block_size=self.cache_config.block_size,
            num_kv_heads=self.model_config.get_total_num_kv_heads(),
            head_size=self.model_config.get_head_size(),
            dtype=self.runner.model.neuron_config.cache_dtype,
        )
        num_layers = self.model_config.get_num_layers(self.parallel_config)
        return {f"layers.{i}": spec for i in range(num_layers)}

    def get_supported_kv_cache_layouts(self) -> list[str]:
        return ["LBNHC"]  # a name that vLLM must know; the graphs have their own

    def determine_available_memory(self) -> int:
        """Bytes of the cache that the graphs have."""
        num_blocks = num_cache_blocks(self.vllm_config) + FIRST_BLOCK
        per_block: int = sum(spec.page_size_bytes for spec in self.get_kv_cache_spec().values())
        return num_blocks * per_block

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """The graphs have their cache already. Raises: ConfigError if vLLM thinks it is larger."""
        most = num_cache_blocks(self.vllm_config) + FIRST_BLOCK
        if kv_cache_config.num_blocks > most:
            raise ConfigError(
                f"vLLM wants {kv_cache_config.num_blocks} cache blocks, but the graphs have "
                f"{most}; set num_gpu_blocks_override"
            )

    def update_max_model_len(self, max_model_len: int) -> None:
        """A shorter limit needs no other graphs."""

    def compile_or_warm_up_model(self) -> CompilationTimes:
        return CompilationTimes(language_model=self._load_time, encoder=0.0)

    # Steps.

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        return self.runner.execute(scheduler_output)

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> ModelRunnerOutput:
        return self.runner.sample(grammar_output)

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        """What is proposed to the requests of the last step."""
        return self.runner.propose()

    def execute_dummy_batch(self) -> None:
        """Replicas need not step together: they share nothing."""

    # The rest of what the engine may ask.

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def get_model(self) -> nn.Module:
        raise UnsupportedError("nxdi runs compiled graphs; there is no module to look at")

    def list_loras(self) -> set[int]:
        return set()

    def add_lora(self, lora_request: Any) -> bool:
        raise UnsupportedError(
            "nxdi does not support LoRA adapters; merge them into the checkpoint"
        )

    def synchronize_device(self) -> None:
        """Every step is complete when it returns."""
