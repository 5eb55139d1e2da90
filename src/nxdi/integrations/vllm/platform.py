"""The platform: what vLLM's configuration must say for nxdi's worker to run it.

vLLM imports this module while it imports its own, so what needs the rest of vLLM is imported late.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms.interface import Platform, PlatformEnum

from nxdi.errors import UnsupportedError
from nxdi.integrations.vllm.layout import lay_out_cache
from nxdi.integrations.vllm.options import KV_CACHE_DTYPES
from nxdi.tools.machine import memory_bytes

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.utils.argparse_utils import FlexibleArgumentParser

LOAD_FORMATS = ("auto", "hf", "safetensors", "pt")
WORKER = "nxdi.integrations.vllm.worker.NxdiWorker"


class NxdiPlatform(Platform):
    """To vLLM all tensors are on the CPU: nxdi's graphs move them to a device if there is one."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    dispatch_key = "CPU"
    dist_backend = "gloo"
    ray_device_key = ""
    device_control_env_var = "NEURON_RT_VISIBLE_CORES"
    simple_compile_backend = "eager"  # nothing of vLLM's is worth compiling here
    supported_quantization: list[str] = []  # noqa: RUF012 - as vLLM declares it

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float32, torch.float16]

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "nxdi"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return memory_bytes() or 0

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return False

    @classmethod
    def inference_mode(cls) -> AbstractContextManager[Any]:
        return torch.no_grad()

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """There is one."""

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        torch.manual_seed(seed)

    def uses_host_device_handling(self) -> bool:
        return True

    @classmethod
    def import_kernels(cls) -> None:
        """None of vLLM's. On a machine without accelerator its shutdown must not ask for one."""
        if not torch.accelerator.is_available():
            torch.accelerator.empty_cache = _nothing
            torch.accelerator.empty_host_cache = _nothing

    @classmethod
    def import_ir_kernels(cls) -> None:
        """None of vLLM's."""

    @classmethod
    def pre_register_and_update(cls, parser: FlexibleArgumentParser | None = None) -> None:
        from nxdi.integrations.vllm.patches import patch
        from nxdi.integrations.vllm.quantization import register_quantization

        patch()
        register_quantization()

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Raises: UnsupportedError for what nxdi does not do; ConfigError for contradictions."""
        if vllm_config.model_config is None:
            return
        from vllm.config import CompilationMode

        _refuse_unsupported(vllm_config)
        vllm_config.compilation_config.mode = CompilationMode.NONE
        vllm_config.scheduler_config.async_scheduling = False
        parallel = vllm_config.parallel_config
        if parallel.worker_cls == "auto":
            parallel.worker_cls = WORKER
        if parallel.world_size > 1:
            parallel.distributed_executor_backend = "uni"  # nxdi has the ranks
        lay_out_cache(vllm_config)

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: VllmConfig) -> None:
        """The block size is that of the compiled graphs."""

    @classmethod
    def validate_request(cls, processed_inputs: Any, params: Any) -> None:
        from nxdi.integrations.vllm.sampling import check_params

        check_params(params)


def _refuse_unsupported(config: VllmConfig) -> None:
    parallel, ranks = config.parallel_config, "use tensor_parallel_size"
    blocks = "use num_gpu_blocks_override"
    for option, value, offered, remedy in (
        ("enable_lora", config.lora_config, (None,), "merge the adapter into the checkpoint"),
        ("kv_transfer_config", config.kv_transfer_config, (None,), "leave it out"),
        ("pipeline_parallel_size", parallel.pipeline_parallel_size, (1,), ranks),
        ("decode_context_parallel_size", parallel.decode_context_parallel_size, (1,), ranks),
        ("load_format", config.load_config.load_format, LOAD_FORMATS, "leave it out"),
        ("kv_cache_dtype", config.cache_config.cache_dtype, KV_CACHE_DTYPES, "leave it out"),
        ("hf_overrides", _overridden(config), (set(),), "change config.json"),
        ("kv_cache_memory_bytes", config.cache_config.kv_cache_memory_bytes, (None,), blocks),
        ("enable_prompt_embeds", config.model_config.enable_prompt_embeds, (False,), "give tokens"),
    ):
        if value not in offered:
            raise UnsupportedError(f"nxdi does not support vLLM's {option}={value!r}; {remedy}")


def _overridden(config: VllmConfig) -> Any:
    """What vLLM is told to read otherwise than config.json has it, but for the architecture."""
    overrides = config.model_config.hf_overrides
    return overrides if callable(overrides) else set(overrides or {}) - {"architectures"}


def _nothing() -> None:
    """There is no accelerator whose cache could be emptied."""
