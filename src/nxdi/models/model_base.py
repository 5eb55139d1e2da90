"""NeuronBaseModel: a Decoder that also takes the forms of models written for NxDI.

Such a model may override `get_model_output` or `forward` with NxDI's arguments, call the base with
them, and have layers with NxDI's keywords. Its step is then one graph; any other model's step is
compiled in pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nxdi.absent import explain_absent_names
from nxdi.config import InferenceConfig
from nxdi.errors import ConfigError
from nxdi.graph.plan import GraphSpec
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.decoder import Decoder, flat
from nxdi.models.layer_call import layer_form, nxdi_keywords
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.attention.utils import RotaryEmbedding
from nxdi.modules.context import LayerContext, running
from nxdi.modules.kvcache import layout_of
from nxdi.parallel_layers.mappings import scatter_to_sequence_parallel_region

__all__ = ["NeuronBaseForCausalLM", "NeuronBaseModel"]


class StepCaches:
    """What a loop over layers of its own asks NxDI's cache manager for."""

    def __init__(self, model: NeuronBaseModel) -> None:
        self._model = model

    def get_cache(self, *args: Any, **kwargs: Any) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer before this step, each [B, N, L, D]."""
        ctx = self._model.running_step
        layouts = self._model.cache_layouts()
        return [ctx.at(index).past(layout) for index, layout in enumerate(layouts)]

    def update_cache(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The caches after this step; each layer's attention has updated its own."""
        return flat(self._model.running_step.new_states())


class NeuronBaseModel(Decoder):
    """The decoder that models subclass: `setup_attr_for_model` and `init_model` build it.

    Other hooks: `embed`, `logits`, and for models written for NxDI `init_inference_optimization`,
    `process_sequence_parallel_hidden_states`, `get_model_output` and `forward`.
    """

    def __init__(self, config: InferenceConfig, optimize_inference: bool = True) -> None:
        super().__init__(config)
        self.kv_mgr = StepCaches(self)
        self._layer_of = {
            module: index for index, layer in enumerate(self.layers) for module in layer.modules()
        }
        self._forms = {type(layer): layer_form(layer) for layer in self.layers}
        for module in self.modules():
            if isinstance(module, RotaryEmbedding):
                module.prepare()
        self.init_inference_optimization(config)
        self._check_window()
        self._check_features()

    def init_inference_optimization(self, config: InferenceConfig) -> None:
        """Called once the model is built; nothing is left to do here."""

    def _check_window(self) -> None:
        window = getattr(self, "sliding_window", None)
        attention = [m for m in self.layers.modules() if isinstance(m, NeuronAttentionBase)]
        has_window = any(module.sliding_window is not None for module in attention)
        if window is not None and window < self.neuron_config.max_length and not has_window:
            raise ConfigError(
                f"the model sets sliding_window={window}, but none of its attention layers has "
                "one; pass sliding_window to NeuronAttentionBase as well"
            )

    def _check_features(self) -> None:
        if self.feature_layers and not self.composes:
            raise ConfigError(
                f"{type(self).__name__} has a forward or get_model_output of its own, so its "
                "graphs return no activations for a draft head; leave out enable_eagle_speculation"
            )

    @property
    def composes(self) -> bool:
        """Whether a step is exactly embed, each layer in turn, last_hidden, head."""
        cls = type(self)
        own = (cls.forward, cls.get_model_output, cls.step)
        base = (NeuronBaseModel.forward, NeuronBaseModel.get_model_output, NeuronBaseModel.step)
        return own == base

    def step(
        self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        if self.composes:
            return super().step(spec, inputs, caches)
        self.running_step, self._inputs = self._context(spec, inputs, caches), inputs
        self.n_positions = spec.length  # NxDI's name of the bucket
        try:
            with running(lambda module: self.running_step.at(self._layer_of[module])):
                outputs = self(**self._nxdi_inputs())
            return outputs, flat(self.running_step.new_states())
        finally:
            del self.running_step, self._inputs

    def call_layer(self, layer: nn.Module, x: Tensor, ctx: LayerContext) -> Tensor:
        with running(lambda module: ctx):
            return self._forms[type(layer)](layer, x, ctx)

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        x = super().embed(inputs)
        return self.process_sequence_parallel_hidden_states(x, inputs["input_ids"].shape[1])

    def process_sequence_parallel_hidden_states(
        self, inputs_embeds: Tensor, seq_length: int, active_block_table: Tensor | None = None
    ) -> Tensor:
        """Embeddings as the first layer wants them: with sequence parallelism, this rank's piece.

        Shapes: inputs_embeds [B, S, hidden], or already [B, S / tp, hidden].
        """
        if self.neuron_config.sequence_parallel_enabled and inputs_embeds.shape[1] == seq_length:
            return scatter_to_sequence_parallel_region(inputs_embeds, 1)
        return inputs_embeds

    def _nxdi_inputs(self) -> dict[str, Any]:
        """The running step as NxDI's arguments of forward."""
        known = nxdi_keywords(self.running_step.at(0), layout_of(self.layers[0]))
        names = ("position_ids", "seq_ids")
        seen = known["attention_mask"][:, 0].any(dim=1).int()
        return {
            "input_ids": self._inputs["input_ids"],
            "attention_mask": seen,
            **{name: known[name] for name in names},
            "sampling_params": self._inputs.get("sampling_params"),
        }

    def forward(  # noqa: PLR0913  NxDI's order
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        seq_ids: Tensor | None = None,
        sampling_params: Tensor | None = None,
        prev_hidden: Tensor | None = None,
        adapter_ids: Tensor | None = None,
        accepted_indices: Tensor | None = None,
        current_length: Tensor | None = None,
        medusa_mask: Tensor | None = None,
        scatter_index: Tensor | None = None,
        slot_mapping: Tensor | None = None,
        active_block_table: Tensor | None = None,
        num_queries: Tensor | None = None,
        computed_context_lens: Tensor | None = None,
        tile_q_indices: Tensor | None = None,
        tile_block_tables: Tensor | None = None,
        tile_masks: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        kv_cache: Any = None,
        active_mask: Tensor | None = None,
        rotary_position_id: Tensor | None = None,
        vision_embeddings: Tensor | None = None,
        vision_mask: Tensor | None = None,
        deepstack_vision_embeds: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The outputs of the running step by name, for a subclass that extends this.

        Shapes: input_ids, position_ids [B, S]; attention_mask [B, L], 1 = there is a token;
        inputs_embeds [B, S, hidden]: what to use in place of the token embeddings.
        """
        del attention_mask  # layers get the causal mask of the step
        keywords = nxdi_keywords(self.running_step.at(0), layout_of(self.layers[0]))
        hidden_states, _ = self.get_model_output(
            input_ids=input_ids,
            seq_ids=seq_ids,
            attention_mask=keywords["attention_mask"],
            position_ids=position_ids,
            past_key_values=None,
            active_mask=active_mask,
            inputs_embeds=inputs_embeds,
            adapter_ids=adapter_ids,
            prev_hidden=prev_hidden,
            is_for_context_encoding=keywords["is_for_context_encoding"],
        )
        last = self.last_hidden(hidden_states, self._inputs)
        return self.results(last, self._inputs)

    def get_model_output(
        self,
        input_ids: Tensor | None = None,
        *args: Any,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """Normalised activations of every token of the running step, and the caches after it.

        Shapes: input_ids [B, S] or inputs_embeds [B, S, hidden], or a rank's piece of them ->
        [B, S, hidden]. With sequence parallelism a piece has S / tp tokens, and so has the result.
        """
        ctx = self.running_step
        if inputs_embeds is None:
            assert input_ids is not None
            x = self.embed({**self._inputs, "input_ids": input_ids})
        else:
            x = self.process_sequence_parallel_hidden_states(
                inputs_embeds.to(self.neuron_config.compute_dtype), ctx.position_ids.shape[1]
            )
        for index, layer in enumerate(self.layers):
            x = self.call_layer(layer, x, ctx.at(index))
        return self.norm(x), flat(ctx.new_states())


explain_absent_names(__name__)
