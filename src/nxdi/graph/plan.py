"""Which graphs a configuration needs, and which of them a step uses. No tensors, no tracing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nxdi.config import NeuronConfig
from nxdi.errors import BucketError, ConfigError
from nxdi.graph.buckets import choose_bucket, make_ladder
from nxdi.graph.inputs import (
    BLOCK_TABLE,
    INPUT_IDS,
    POSITION_IDS,
    SAMPLING_PARAMS,
    SEQ_IDS,
    TOKEN_PLACES,
    TREE_MASK,
    UNIFORM,
    UNIFORMS,
    InputSpec,
)
from nxdi.types import Phase

# The output that has activations of every token, where others have a result per row.
FEATURES = "features"
# Of a draft head's input of that name: which tokens have features of the head's own, of its hidden
# size, where others have the target's.
IS_OWN = "is_own"
FUSED_TAG = "fused_speculation_model"


@dataclass(frozen=True)
class GraphSpec:
    """One static graph.

    `length` is in tokens: a prefill, extend or verify graph takes that many new tokens per row, a
    decode graph takes one and attends to that many cache slots. `context`: the cache slots that an
    extend or verify graph attends to, those of its new tokens included. `block_size`: of a paged
    cache, else 0. `proposes`: a verify graph takes each row's last token only and proposes the
    others itself, at the positions it is given.
    """

    phase: Phase
    batch_size: int
    length: int
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    context: int = 0
    block_size: int = 0
    proposes: bool = False

    @property
    def num_tokens(self) -> int:
        """New tokens per row in one step."""
        return 1 if self.phase is Phase.DECODE else self.length

    @property
    def num_slots(self) -> int:
        """Positions that a row's queries may see."""
        return self.context or self.length

    @property
    def name(self) -> str:
        context = f"_c{self.context}" if self.context else ""
        return f"{self.tag}_b{self.batch_size}_s{self.length}{context}"

    @property
    def tag(self) -> str:
        """NxDI's name for the sub-model it belongs to."""
        return FUSED_TAG if self.proposes else self.phase.tag

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        num_blocks = -(-self.num_slots // self.block_size) if self.block_size else 0
        return {
            item.name: item.shape(self.batch_size, self.num_tokens, num_blocks)
            for item in self.inputs
        }

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "phase": self.phase.value, "name": self.name}


@dataclass(frozen=True)
class GraphPlan:
    """All graphs of a model, in order of phase, batch and length."""

    graphs: tuple[GraphSpec, ...]

    def of(self, phase: Phase) -> tuple[GraphSpec, ...]:
        return tuple(graph for graph in self.graphs if graph.phase is phase)

    def max_batch(self, phase: Phase) -> int:
        return max(graph.batch_size for graph in self.of(phase))

    def max_length(self, phase: Phase) -> int:
        return max(graph.length for graph in self.of(phase))

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that have graphs."""
        return tuple(dict.fromkeys(graph.phase for graph in self.graphs))

    def choose(self, phase: Phase, num_rows: int, length: int, context: int = 0) -> GraphSpec:
        """The smallest batch that holds `num_rows`, and in it the smallest length that fits.

        context: for an extend or verify graph, the positions that its rows see. Of the lengths with
        a graph that sees so many it takes the smallest, and of those graphs the one that sees the
        fewest.
        Raises: BucketError naming the largest graph and the option that would raise it.
        """
        graphs = self.of(phase)
        batches = sorted({graph.batch_size for graph in graphs})
        batch = choose_bucket(
            num_rows, batches, f"{phase.value} batch", "raise batch_size and compile again"
        )
        graphs = tuple(graph for graph in graphs if graph.batch_size == batch)
        contexts = sorted({graph.context for graph in graphs})
        remedy = "raise seq_len, and prefix_buckets if given, and compile again"
        seen = choose_bucket(context, contexts, "context (tokens)", remedy)
        graphs = tuple(graph for graph in graphs if graph.context >= seen)
        what, limit = _LIMITS[phase]
        lengths = sorted({graph.length for graph in graphs})
        remedy = f"raise {limit} and compile again"
        rung = choose_bucket(length, lengths, f"{what} (tokens)", remedy)
        fitting = (graph for graph in graphs if graph.length == rung)
        return min(fitting, key=lambda graph: graph.context)


# What the length of a graph bounds, and the option that raises it.
_LIMITS = {
    Phase.PREFILL: ("prompt", "max_context_length"),
    Phase.DECODE: ("sequence", "seq_len"),
    Phase.EXTEND: ("prompt", "max_context_length"),
    Phase.VERIFY: ("step", "speculation_length"),
}


def plan_graphs(config: NeuronConfig, extra_inputs: Sequence[InputSpec] = ()) -> GraphPlan:
    """The graphs that `config` asks for, each with `extra_inputs` besides its own.

    Prefill: one per prompt bucket at `ctx_batch_size`. Decode: one per batch bucket and attended
    length. Extend, where prompts come in pieces or find a prefix: one per prompt bucket and
    attended length, or per prompt bucket and prefix bucket. Verify, where several tokens of a row
    may be right at once: as decode.
    """
    outputs = _outputs(config)
    block_size = config.pa_block_size if config.is_block_kv_layout else 0

    def graph(phase: Phase, batch_size: int, length: int, context: int = 0) -> GraphSpec:
        inputs = (*_inputs(config, phase), *extra_inputs)
        proposes = phase is Phase.VERIFY and config.proposes_in_graph
        return GraphSpec(phase, batch_size, length, inputs, outputs, context, block_size, proposes)

    pieces = _ladder(config, config.context_encoding_buckets, config.max_context_length)
    if (longest := config.windowed_context_encoding_size) is not None:
        pieces = (*(length for length in pieces if length < longest), longest)
    seen = _ladder(config, config.token_generation_buckets, config.max_length)
    graphs = [graph(Phase.PREFILL, config.ctx_batch_size, length) for length in pieces]
    graphs += [
        graph(Phase.DECODE, batch, length) for batch in _decode_batches(config) for length in seen
    ]
    if config.extends_prompts:
        graphs += [
            graph(Phase.EXTEND, config.ctx_batch_size, length, context)
            for length in pieces
            for context in _contexts(config, length, seen)
        ]
    if config.num_verified:
        graphs += [
            graph(Phase.VERIFY, batch, config.num_verified, context)
            for batch in _decode_batches(config)
            for context in seen
        ]
    if config.sequence_parallel_enabled:
        _check_sequence_parallel(config, graphs)
    return GraphPlan(tuple(graphs))


def _ladder(config: NeuronConfig, explicit: Sequence[int] | None, longest: int) -> tuple[int, ...]:
    if explicit:
        return tuple(explicit)
    return make_ladder(longest) if config.enable_bucketing else (longest,)


def _contexts(config: NeuronConfig, length: int, seen: Sequence[int]) -> list[int]:
    """The attended lengths of the extend graphs that take `length` new tokens.

    The new tokens are among them, so a row whose tokens do not fill `length` has as many slots more
    for its prefix. NxDI moves that many tokens from the prefix to the new ones and computes them
    again; here they are read from the cache, in a graph of the same size.
    """
    if config.prefix_buckets is None:
        # A piece that sees no more than itself is a prefill.
        return [context for context in seen if context > length or context == seen[-1]]
    longest = config.max_length
    return sorted({min(length + prefix, longest) for prefix in (0, *config.prefix_buckets)})


def _decode_batches(config: NeuronConfig) -> list[int]:
    """Batch buckets of decode; the full batch is always one of them."""
    return sorted({*(config.token_generation_batches or ()), config.tkg_batch_size})


def _inputs(config: NeuronConfig, phase: Phase) -> tuple[InputSpec, ...]:
    # A paged cache has blocks where another has rows.
    base: tuple[InputSpec, ...] = (
        INPUT_IDS,
        POSITION_IDS,
        BLOCK_TABLE if config.is_block_kv_layout else SEQ_IDS,
    )
    if config.verifies_trees and phase is Phase.VERIFY:
        base = (*base, TOKEN_PLACES, TREE_MASK)
    sampling = config.on_device_sampling_config
    if sampling is not None and (sampling.do_sample or sampling.dynamic):
        return (*base, SAMPLING_PARAMS, UNIFORMS if phase is Phase.VERIFY else UNIFORM)
    return base


def _outputs(config: NeuronConfig) -> tuple[str, ...]:
    # A head in the graph takes them there.
    is_read = config.returns_features and not config.proposes_in_graph
    features = (FEATURES,) if is_read else ()
    candidates = ("candidates",) if config.is_medusa else ()
    if config.on_device_sampling_config is None:
        return ("logits", *candidates, *features)
    return ("tokens", *(("logits",) if config.output_logits else ()), *candidates, *features)


def _check_sequence_parallel(config: NeuronConfig, graphs: Sequence[GraphSpec]) -> None:
    lengths = {graph.length for graph in graphs if not graph.phase.is_decoding}
    uneven = sorted(length for length in lengths if length % config.tp_degree)
    if uneven:
        raise ConfigError(
            "sequence_parallel_enabled needs prefill buckets divisible by "
            f"tp_degree={config.tp_degree}, but got {uneven}; choose other "
            "context_encoding_buckets or max_context_length"
        )


def check_capacity(config: NeuronConfig, prompt_len: int, max_new_tokens: int) -> None:
    """Refuse a generation that would run out of cache.

    Raises: BucketError before anything is computed.
    """
    longest = _ladder(config, config.token_generation_buckets, config.max_length)[-1]
    if prompt_len + max_new_tokens - 1 > longest:
        limit = "seq_len" if longest == config.max_length else "max(token_generation_buckets)"
        raise BucketError(
            f"prompt of {prompt_len} tokens plus {max_new_tokens} new tokens is longer than "
            f"{limit}={longest}; ask for at most {longest - prompt_len + 1} new tokens, or raise "
            "it and compile again"
        )
