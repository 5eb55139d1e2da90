"""vLLM's defaults that nxdi has otherwise. vLLM asks no platform for these, so they are patched.

Each patch changes what applies when the user has asked for nothing; what the user gives is kept.
"""

from __future__ import annotations

import copy
from typing import Any

from vllm.config import ModelConfig
from vllm.engine.arg_utils import EngineArgs

from nxdi import env

MAX_NUM_SEQS = 32
_TOKENS_PER_STEP = 2048


def set_defaults() -> None:
    """Patch vLLM, once per process."""
    # The graphs of a contiguous cache take whole prompts, and find no prefixes.
    ModelConfig.is_chunked_prefill_supported = property(_is_chunked_by_default)
    ModelConfig.is_prefix_caching_supported = property(_is_prefix_cached_by_default)
    # Every row of a batch is compiled in, and has its cache.
    EngineArgs.get_batch_defaults = classmethod(_batch_defaults)
    # nxdi pads heads that do not divide by the number of ranks.
    if ModelConfig.verify_with_parallel_config is not _verify_with_parallel_config:
        _verify_one_rank.append(ModelConfig.verify_with_parallel_config)
        ModelConfig.verify_with_parallel_config = _verify_with_parallel_config


_verify_one_rank: list[Any] = []  # vLLM's own check


def _is_chunked_by_default(config: ModelConfig) -> bool:
    return env.vllm_schedules()


def _is_prefix_cached_by_default(config: ModelConfig) -> bool:
    return False


def _batch_defaults(cls: type[EngineArgs], world_size: int) -> tuple[Any, Any]:
    from vllm.usage.usage_lib import UsageContext

    contexts = [UsageContext.LLM_CLASS, UsageContext.OPENAI_API_SERVER]
    return dict.fromkeys(contexts, _TOKENS_PER_STEP), dict.fromkeys(contexts, MAX_NUM_SEQS)


def _verify_with_parallel_config(self: ModelConfig, parallel_config: Any) -> None:
    one_rank = copy.copy(parallel_config)
    one_rank.tensor_parallel_size = 1
    _verify_one_rank[0](self, one_rank)
