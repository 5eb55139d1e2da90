"""transformers' generate() over a compiled model: same call, same options, or a refusal by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from nxdi.config import limits, serialize
from nxdi.config.from_hf import to_pretrained_config
from nxdi.errors import ConfigError, ShapeError, UnsupportedError
from nxdi.generation.ahead import make_starter
from nxdi.generation.choosers import make_chooser
from nxdi.generation.loop import Generated, decode_loop
from nxdi.generation.speculation.generate import (
    choose_proposer,
    make_draft,
    make_lookup,
    speculative_decode_loop,
)
from nxdi.graph.plan import check_capacity
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM

# Options that ask for another algorithm than one token after the other, with their neutral values.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "assistant_early_exit": (None,),
    "assistant_tokenizer": (None,),
    "use_mtp": (None, False),
    "custom_generate": (None,),
    "token_healing": (None, False),
    "negative_prompt_ids": (None,),
    "negative_prompt_attention_mask": (None,),
    "guidance_scale": (None, 1, 1.0),
    # These hold the same keys and values; the compiled model has a cache of its own.
    "cache_implementation": (None, "dynamic", "static", "offloaded", "offloaded_static", "hybrid"),
    "past_key_values": (None,),
    "inputs_embeds": (None,),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
}


# Any, because its signatures differ between transformers 4.57 and 5.x.
_GenerationMixin: Any = GenerationMixin


class HuggingFaceGenerationAdapter(_GenerationMixin):  # type: ignore[misc]  # see above
    """A loaded model with transformers' `generate`.

    Everything GenerationConfig says is honoured through transformers' own processors and stopping
    criteria, or refused by name. Prompts may be padded on either side; any number of rows up to
    `batch_size` works. `seeds` (one per row) and `sampling_params` [B, 3] reach the sampler in the
    graph. `assistant_model` (a loaded draft model) or `prompt_lookup_num_tokens` propose tokens,
    for any number of rows, to a model compiled with speculation_length.
    """

    main_input_name = "input_ids"
    input_modalities = ("text",)
    base_model_prefix = ""
    _is_stateful = False

    def __init__(self, model: NeuronBaseForCausalLM) -> None:
        self.neuron_model = model
        self.neuron_config = model.neuron_config
        self.config = to_pretrained_config(model.config)
        self.generation_config = _generation_config(model.model_path, self.config)
        self.device = torch.device("cpu")
        self._starter = make_starter(model.neuron_config)

    def can_generate(self) -> bool:
        return True

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        seeds: Sequence[int] | None = None,
        sampling_params: Tensor | None = None,
    ) -> CausalLMOutput:
        """One prefill step; decoding goes through `generate`."""
        return self.neuron_model(
            input_ids, attention_mask, seeds=seeds, sampling_params=sampling_params
        )

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, **model_kwargs: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids, **model_kwargs}

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """As transformers' `generate`.

        Returns: token ids [B, prompt + new], or a dictionary with `return_dict_in_generate=True`.
        Raises: UnsupportedError for beam search and other algorithms, naming the option;
        BucketError for a request that does not fit the compiled lengths or batch, before anything
        is computed.
        """
        _refuse(kwargs)
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        if prompt is None or prompt.dim() != 2 or 0 in prompt.shape:
            shape = None if prompt is None else tuple(prompt.shape)
            raise ShapeError(
                f"generate needs input_ids [batch, tokens] with at least one token, not {shape}"
            )
        draft = kwargs.pop("assistant_model", None)
        if draft is not None:
            kwargs["proposer"] = make_draft(draft)
        result: Tensor | GenerateDecoderOnlyOutput = super().generate(
            inputs, generation_config, **kwargs
        )
        return result

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, *args: Any, **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """transformers' merge of all sources of options; the folder's defaults are checked too."""
        merged: tuple[GenerationConfig, dict[str, Any]] = super()._prepare_generation_config(
            generation_config, *args, **kwargs
        )
        _refuse(vars(merged[0]))
        config, model_kwargs = merged
        if config.prompt_lookup_num_tokens is not None:
            # Speculation is nxdi's own: to transformers this is a search like any other.
            if "proposer" in model_kwargs:
                raise ConfigError(
                    f"prompt_lookup_num_tokens={config.prompt_lookup_num_tokens} and "
                    "assistant_model both propose tokens; give one"
                )
            model_kwargs["proposer"] = make_lookup(self.neuron_model, config)
            config.prompt_lookup_num_tokens = None
        return merged

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """As transformers', which does not know the name of what proposes tokens."""
        known = {name: value for name, value in model_kwargs.items() if name != "proposer"}
        super()._validate_model_kwargs(known)

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """transformers calls this once all is prepared, for greedy search and for sampling."""
        mask = model_kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        if input_ids.shape[0] > self.neuron_config.tkg_batch_size:
            asked = [*logits_processor, *stopping_criteria]
            return self._sample_many(input_ids, mask, asked, generation_config, model_kwargs)
        self._check_fit(input_ids, mask, generation_config)
        chooser = make_chooser(
            self.neuron_config,
            generation_config,
            logits_processor,
            input_ids.shape[0],
            sampling_params=model_kwargs.get("sampling_params"),
            seeds=model_kwargs.get("seeds"),
        )
        keeps = bool(generation_config.return_dict_in_generate)
        done = Generated(
            input_ids,
            logits=() if keeps and generation_config.output_logits else None,
            scores=() if keeps and generation_config.output_scores else None,
        )
        # As in transformers, rows that other criteria stop go on until all rows have stopped.
        has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        pad = generation_config._pad_token_tensor if has_eos else None
        run = decode_loop
        proposer = choose_proposer(self.neuron_model, model_kwargs.get("proposer"), chooser, done)
        if proposer is not None:
            run = partial(speculative_decode_loop, proposer=proposer)
        run(
            self.neuron_model,
            done,
            mask,
            chooser=chooser,
            stopping=stopping_criteria,
            pad_token_id=None if pad is None else int(pad),
            starter=self._starter,
            streamer=streamer,
        )
        if not keeps:
            return done.input_ids
        make_output: Any = GenerateDecoderOnlyOutput  # its annotations name tensor subclasses
        output: GenerateDecoderOnlyOutput = make_output(
            sequences=done.input_ids, scores=done.scores, logits=done.logits
        )
        return output

    def _sample_many(
        self,
        input_ids: Tensor,
        mask: Tensor,
        asked: Sequence[object],
        generation_config: GenerationConfig,
        model_kwargs: Mapping[str, Any],
    ) -> Tensor:
        """More prompts than rows: they share the rows through ContinuousBatcher."""
        from nxdi.generation.many import check_many, generate_many

        check_many(self.neuron_config, len(input_ids), asked, generation_config)
        self._check_fit(input_ids, mask, generation_config)
        seeds, proposer = model_kwargs.get("seeds"), model_kwargs.get("proposer")
        return generate_many(self.neuron_model, input_ids, mask, generation_config, seeds, proposer)

    def _check_fit(
        self, input_ids: Tensor, mask: Tensor, generation_config: GenerationConfig
    ) -> None:
        width = input_ids.shape[1]
        prompt_len = int(mask.sum(dim=1).max())
        if self.neuron_config.allow_input_truncation:
            prompt_len = min(prompt_len, self.neuron_config.longest_prompt)
        check_capacity(self.neuron_config, prompt_len, int(generation_config.max_length) - width)

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> None:
        """The cache lives in the compiled model; transformers has none to prepare."""


def _refuse(options: Mapping[str, Any]) -> None:
    for name, neutral in _REFUSED.items():
        value = options.get(name)
        if not any(value is item or value == item for item in neutral):
            shown = repr(value) if isinstance(value, (str, int, float)) else "..."
            raise UnsupportedError(
                f"generate({name}={shown}) is not supported, only greedy search and sampling; "
                f"leave {name} out"
            )


def _generation_config(folder: Path, config: Any) -> GenerationConfig:
    """The defaults of a model folder, found where transformers finds them.

    Raises: ConfigError naming the file if they are damaged.
    """
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        if not file.is_file():
            continue
        data = serialize.read_object(file)
        limits.check_names(data, GenerationConfig, str(file))
        limits.check_generation_values(data, str(file))
        try:
            return GenerationConfig.from_pretrained(
                folder, config_file_name=name, _from_model_config=name == "config.json"
            )
        except Exception as error:  # transformers raises whatever its checks raise
            raise ConfigError(f"{file} has no usable defaults for generation: {error}") from error
    return GenerationConfig.from_model_config(config)
