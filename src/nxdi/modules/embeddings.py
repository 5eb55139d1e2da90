"""The two ends of a language model: its embeddings and its vocabulary projection."""

from __future__ import annotations

from nxdi.config import InferenceConfig
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding


def causal_lm_ends(
    config: InferenceConfig, bias: bool = False
) -> tuple[ParallelEmbedding, ColumnParallelLinear]:
    """The token embedding and the lm_head of a config, sharded as its NeuronConfig asks."""
    neuron = config.neuron_config
    embed_tokens = embedding(config, config.vocab_size)
    lm_head = ColumnParallelLinear(
        config.hidden_size,
        config.vocab_size,
        bias,
        gather_output=True,
        dtype=neuron.torch_dtype,
        pad=True,
    )
    return embed_tokens, lm_head


def embedding(config: InferenceConfig, num_embeddings: int) -> ParallelEmbedding:
    """A table of vectors of the hidden size, such as one per token or per position."""
    neuron = config.neuron_config
    return ParallelEmbedding(
        num_embeddings,
        config.hidden_size,
        dtype=neuron.torch_dtype,
        shard_across_embedding=not neuron.vocab_parallel,
        pad=True,
        sequence_parallel_enabled=neuron.sequence_parallel_enabled,
    )
