"""What a model's graphs and cache allow: blocks, tokens per step, and tokens per sequence."""

from __future__ import annotations

from dataclasses import dataclass

from nxdi.errors import BucketError, ConfigError
from nxdi.generation.blocks import BlockManager
from nxdi.generation.scheduler import StepLimits
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.types import Phase


def make_blocks(model: NeuronBaseForCausalLM) -> BlockManager:
    """The blocks of a model's cache. In the contiguous layout each cache row is one block."""
    config = model.neuron_config
    if not config.is_block_kv_layout:
        return BlockManager(config.tkg_batch_size, model.plan.max_length(Phase.DECODE))
    # With LongRoPE, what a block holds depends on how long its sequence becomes.
    shares_prefixes = config.is_prefix_caching and model.prefill_again_at is None
    return BlockManager(config.pa_num_blocks, config.pa_block_size, shares_prefixes)


def step_limits(model: NeuronBaseForCausalLM, max_tokens: int | None) -> StepLimits:
    """What one step of a model may hold.

    max_tokens: None: one for each row, and one chunk (a whole prompt, where nothing can be cut).
    Raises: ConfigError if a full batch of running rows would leave nothing for prompts.
    """
    config, max_prompt = model.neuron_config, model.plan.max_length(Phase.PREFILL)
    chunks = [graph.num_tokens for graph in model.plan.of(Phase.EXTEND)]
    if max_tokens is None:
        max_tokens = config.tkg_batch_size + max(chunks, default=max_prompt)
    if max_tokens <= config.tkg_batch_size:
        raise ConfigError(
            f"max_step_tokens={max_tokens} leaves nothing for prompts while "
            f"tkg_batch_size={config.tkg_batch_size} rows run; raise it by at least "
            f"{config.tkg_batch_size + 1 - max_tokens}"
        )
    return StepLimits(
        max_rows=config.tkg_batch_size,
        max_tokens=max_tokens,
        max_prompt=max_prompt,
        max_chunk=max(chunks, default=1),
        whole_from=model.prefill_again_at,
    )


@dataclass(frozen=True)
class SequenceLimits:
    """Tokens that the cache holds of one sequence at most, what limits them, and of its prompt."""

    num_tokens: int
    reason: str
    num_prompt: int

    def num_new(self, prompt_len: int, asked: int | None) -> int:
        """How many new tokens a request may have.

        asked: None: as many as there is room for.
        Raises: BucketError for a prompt, or more new tokens, than fit.
        """
        if prompt_len > self.num_prompt:
            raise BucketError(
                f"prompt of {prompt_len} tokens is longer than {self.num_prompt}, which "
                f"max_context_length (and prefix_buckets, if given) and {self.reason} allow; "
                "shorten it, or raise them and compile again"
            )
        room = self.num_tokens - prompt_len + 1  # the last new token is never computed
        if asked is not None and asked > room:
            raise BucketError(
                f"prompt of {prompt_len} tokens plus {asked} new tokens is longer than "
                f"{self.reason}={self.num_tokens}; ask for at most {room} new tokens, or raise it "
                "and compile again"
            )
        return room if asked is None else asked


def sequence_limits(
    model: NeuronBaseForCausalLM, blocks: BlockManager, limits: StepLimits
) -> SequenceLimits:
    """The limits of one sequence that runs alone."""
    bounds = [
        (model.plan.max_length(Phase.DECODE), "seq_len"),
        (blocks.num_tokens, "pa_num_blocks * pa_block_size"),
    ]
    whole_from = limits.whole_from
    if whole_from is not None and limits.max_prompt <= whole_from:
        bounds.append((whole_from, "max_context_length (LongRoPE starts over there)"))
    longest, reason = min(bounds, key=lambda bound: bound[0])
    seen = max((graph.context for graph in model.plan.of(Phase.EXTEND)), default=limits.max_prompt)
    may_lose_blocks = blocks.num_blocks < limits.max_rows * blocks.num_needed(longest)
    if limits.max_chunk > 1 and may_lose_blocks and seen < longest:
        # What it has by then is its prompt, and computed again.
        longest, reason = seen, "max(context_encoding_buckets) + max(prefix_buckets)"
    return SequenceLimits(longest, reason, min(longest, seen))
