"""Decoder: one step of a language model, from token ids to logits or tokens, as it is traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.graph.plan import GraphSpec
from nxdi.modules.candidates import make_candidate_heads
from nxdi.modules.context import LayerContext, StepContext
from nxdi.modules.features import make_features
from nxdi.modules.kvcache.spec import CacheState, KVCacheLayout, layout_of
from nxdi.modules.order import choose_order
from nxdi.modules.readout import make_readout
from nxdi.modules.sampling import make_sampler
from nxdi.modules.sequence import SequenceGather
from nxdi.parallel_layers.mappings import gather_from_tensor_model_parallel_region_with_dim

_TENSORS_PER_LAYER = len(CacheState._fields)


class Decoder(nn.Module):
    """Embed, layers, norm, lm_head, sampler.

    A subclass builds `embed_tokens`, `layers`, `norm` and `lm_head` in `init_model`. A layer maps
    x [B, S, hidden_size] to the same shape; its attention has a `cache_layout`. The model is pure:
    caches come in as tensors and go out as new tensors.
    """

    embed_tokens: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    lm_head: nn.Module

    def __init__(self, config: InferenceConfig) -> None:
        super().__init__()
        self.config, self.neuron_config = config, config.neuron_config
        sampling = self.neuron_config.on_device_sampling_config
        self.output_logits = sampling is None or self.neuron_config.output_logits
        self.sequence_parallel_enabled = self.neuron_config.sequence_parallel_enabled
        self.sequence_dimension = 1 if self.sequence_parallel_enabled else None
        self.gather = SequenceGather(self.sequence_parallel_enabled)
        self.readout = make_readout(self.neuron_config)
        self.order_of = choose_order(self.neuron_config)
        self.setup_attr_for_model(config)
        self.init_model(config)
        self.sampler = None if sampling is None else make_sampler(sampling)
        self.candidate_heads = make_candidate_heads(config)
        self.features = make_features(self.neuron_config, len(self.layers))

    def setup_attr_for_model(self, config: InferenceConfig) -> None:
        """Set the attributes NxDI models set here; a port may override or extend this."""
        neuron = config.neuron_config
        self.on_device_sampling = neuron.on_device_sampling
        self.tp_degree, self.max_batch_size, self.buckets = (
            neuron.tp_degree,
            neuron.max_batch_size,
            neuron.buckets,
        )
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads

    def init_model(self, config: InferenceConfig) -> None:
        """Build the modules. Raises: TypeError unless a subclass defines it."""
        raise TypeError(f"{type(self).__name__} must define init_model")

    def step(
        self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """One step of graph `spec`: the outputs by name, and the caches after it.

        Shapes: inputs as `spec` declares; caches flat, as `cache_shapes` says.
        """
        ctx = self._context(spec, inputs, caches)
        x = self.embed(inputs)
        after = {}
        for index, layer in enumerate(self.layers):
            x = self.call_layer(layer, x, ctx.at(index))
            if index in self.feature_layers:
                after[index] = x
        outputs = self.head(self.last_hidden(x, inputs), inputs)
        return {**outputs, **self.feature_outputs(after)}, flat(ctx.new_states())

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return self.features.layers

    def feature_outputs(self, after: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """What the graph returns of the activations after `features.layers`, by name."""
        return self.features.outputs(
            {layer: self.gather(x) for layer, x in after.items()}, self.norm
        )

    def call_layer(self, layer: nn.Module, x: Tensor, ctx: LayerContext) -> Tensor:
        """One layer. [B, S, hidden_size] -> same."""
        out: Tensor = layer(x, ctx=ctx)
        return out

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Token ids [B, S] -> activations [B, S, hidden_size] in the compute dtype."""
        x: Tensor = self.embed_tokens(inputs["input_ids"])
        return x.to(self.neuron_config.compute_dtype)

    def layer_step(
        self,
        layer: nn.Module,
        spec: GraphSpec,
        x: Tensor,
        inputs: Mapping[str, Tensor],
        caches: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """One layer with its own caches: a piece that a backend may compile once for all alike."""
        ctx = self._context(spec, inputs, caches)
        x = self.call_layer(layer, x, ctx.at(0))
        return x, flat(ctx.new_states())

    def last_hidden(self, x: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The activations that logits are made of, one token per row: each row's last real token.

        In a verify graph each token is a row of its own, there and below.
        Shapes: [B, S, hidden] -> [B, 1, hidden].
        """
        return self.readout.hidden(self.gather(x), inputs["position_ids"])

    def head(self, x: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs the config asks for, from activations as the last layer leaves them.

        Shapes: x [B, 1, hidden_size] -> tokens int32 [B], logits float32 [B, vocab_size].
        """
        return self.results(self.norm(x), inputs)

    def results(self, x: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs made of normalised activations [B, 1, hidden_size], by name."""
        candidates = self.candidate_heads.outputs(x)
        proposed = {name: self.readout.output(value) for name, value in candidates.items()}
        return {**self.outputs(self.logits(x), inputs), **proposed}

    def logits(self, x: Tensor) -> Tensor:
        """Normalised activations [B, 1, hidden_size] -> float32 [B, vocab_size]."""
        return self._whole_vocabulary(self.lm_head(x)).squeeze(1).float()

    def outputs(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the graph returns, by name. logits [B, vocab_size]."""
        outputs = {"logits": logits} if self.output_logits else {}
        if self.sampler is not None:
            outputs["tokens"] = self.sampler(logits, *self.readout.sampling(inputs))
        return {name: self.readout.output(value) for name, value in outputs.items()}

    def _whole_vocabulary(self, logits: Tensor) -> Tensor:
        """The logits of all ranks, without those of padding, whatever lm_head leaves."""
        vocab_size = self.config.vocab_size
        if logits.shape[-1] < vocab_size:
            logits = gather_from_tensor_model_parallel_region_with_dim(logits, -1)
        return logits[..., :vocab_size]

    @property
    def composes(self) -> bool:
        """Whether `step` is the one above, so that its pieces may be compiled apart."""
        return type(self).step is Decoder.step

    def cache_layouts(self) -> list[KVCacheLayout]:
        """The cache layout of each layer."""
        return [layout_of(layer) for layer in self.layers]

    def cache_shapes(self) -> list[tuple[int, ...]]:
        """Shape of every cache tensor on one rank: keys then values, layer by layer."""
        rows = self.neuron_config.kv_cache_batch_size
        return [shape for layout in self.cache_layouts() for shape in layout.shapes(rows)]

    def cache_dtypes(self) -> list[torch.dtype]:
        """The dtype of each of them."""
        return [self.neuron_config.cache_dtype] * len(self.cache_shapes())

    def _context(
        self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> StepContext:
        states = [
            CacheState(*caches[i : i + _TENSORS_PER_LAYER])
            for i in range(0, len(caches), _TENSORS_PER_LAYER)
        ]
        return StepContext(
            spec.phase,
            inputs["position_ids"],
            inputs.get("seq_ids"),
            spec.num_slots,
            states,
            inputs.get("block_table"),
            order=self.order_of(inputs),
        )


def flat(states: Sequence[CacheState]) -> list[Tensor]:
    """Caches as one list: keys then values, layer by layer."""
    return [tensor for state in states for tensor in state]
