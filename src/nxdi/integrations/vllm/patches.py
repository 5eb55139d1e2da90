"""Where nxdi differs from vLLM and vLLM asks no platform, so that it is patched.

Defaults change what applies when the user has asked for nothing; what the user gives is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from vllm import SamplingParams
from vllm.config import ModelConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError

from nxdi import env
from nxdi.integrations.vllm.constraints import check_constraints

MAX_NUM_SEQS = 32
_TOKENS_PER_STEP = 2048


def patch() -> None:
    """Patch vLLM, once per process."""
    if _originals:
        return
    # The graphs of a contiguous cache take whole prompts, and find no prefixes.
    ModelConfig.is_chunked_prefill_supported = property(_is_chunked_by_default)
    ModelConfig.is_prefix_caching_supported = property(_is_prefix_cached_by_default)
    # Every row of a batch is compiled in, and has its cache.
    EngineArgs.get_batch_defaults = classmethod(_batch_defaults)
    # nxdi pads heads that do not divide by the number of ranks.
    _originals["verify"] = ModelConfig.verify_with_parallel_config
    ModelConfig.verify_with_parallel_config = _verify_with_parallel_config
    # The platform's own hook comes after the grammar compilers.
    _originals["validate"] = SamplingParams._validate_structured_outputs
    SamplingParams._validate_structured_outputs = _validate_structured_outputs


_originals: dict[str, Callable[..., None]] = {}  # vLLM's own checks


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
    _originals["verify"](self, one_rank)


def _validate_structured_outputs(self: SamplingParams, *args: Any) -> None:
    check_constraints(self.structured_outputs)
    try:
        _originals["validate"](self, *args)
    except VLLMValidationError:
        raise
    except Exception as error:  # a compiler's own, for what only the request can have caused
        raise VLLMValidationError(f"structured outputs cannot be compiled: {error}") from error
