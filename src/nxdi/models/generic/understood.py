"""What the generic decoder understands of a model folder: everything, or it is refused by name.

Every attribute of config.json must be one that the decoder uses, one that cannot change the result,
or one at the value that switches it off. Every tensor of the checkpoint must be one of Llama's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.config import limits, load_pretrained_config
from nxdi.config.from_hf import check_config_file
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.runtime.checkpoint import listed, read_checkpoint

if TYPE_CHECKING:
    from nxdi.config import InferenceConfig

Shapes = Mapping[str, tuple[int, ...]]

_ESSENTIAL = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings", "hidden_act", "rms_norm_eps", "rope_theta"),
)
_USED = {
    *_ESSENTIAL,
    *("num_key_value_heads", "head_dim", "tie_word_embeddings"),
    *("rope_scaling", "rope_parameters", "partial_rotary_factor"),
    *("layer_types", "sliding_window", "use_sliding_window", "max_window_layers"),
}
# Said by the config, shown by the checkpoint. True with nothing to show is a contradiction.
_SHOWN = {
    "attention_bias": "has_qkv_bias",
    "qkv_bias": "has_qkv_bias",
    "attention_out_bias": "has_o_bias",
    "mlp_bias": "has_mlp_bias",
    "use_qk_norm": "has_qk_norm",
    "qk_norm": "has_qk_norm",
}
_OFF = {
    "logit_scale": 1,
    "logits_scaling": 1,
    "embedding_multiplier": 1,
    "residual_multiplier": 1,
}
_HARMLESS = {
    *("architectures", "model_type", "auto_map", "initializer_range", "pretraining_tp"),
    *("dtype", "torch_dtype", "tokenizer_class", "id2label", "label2id"),
}
_TRAINING = re.compile(r"dropout|pdrop|_token_ids?$")
_ROPE = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor"),
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_OURS = {
    *("neuron_config", "fused_spec_config", "metadata", "attribute_map"),
    *("has_qkv_bias", "has_o_bias", "has_mlp_bias", "has_qk_norm"),
}
# Types of config whose folders look like Llama's throughout.
_LOOK_ALIKES = {
    "gemma": "its norms add one to their weights, and its embeddings are scaled",
    "helium": "its rotary embedding turns neighbours",
    "ernie4_5": "its rotary embedding turns neighbours",
}
_TENSORS = re.compile(
    r"lm_head\.weight|(model\.)?(embed_tokens\.weight|norm\.weight|layers\.\d+\.("
    r"(input|post_attention)_layernorm\.weight|mlp\.(gate|up|down)_proj\.(weight|bias)|"
    r"self_attn\.([qkvo]_proj\.(weight|bias)|[qk]_norm\.weight|rotary_emb\.inv_freq)))"
)


def load_generic_config(folder: Path) -> Callable[[InferenceConfig], None]:
    """A `load_config` hook that reads config.json, and the names and shapes in the checkpoint.

    A config of a type that transformers knows gets that type's defaults; any other is taken as it
    is written, and must then say everything.
    Raises: (the hook) UnsupportedError naming what is not understood; ConfigError for an attribute
        that is missing or contradicts the checkpoint.
    """

    def load_config(config: InferenceConfig) -> None:
        file = folder / "config.json"
        data = check_config_file(file)
        shapes = {name: tuple(t.shape) for name, t in read_checkpoint(folder).items()}
        _check_tensors(shapes, folder)
        _read_attributes(config, data, folder, "lm_head.weight" in shapes)
        _look_for_parts(config, shapes)
        _check_attributes(config, str(file))
        _check_rope(config, str(file))
        _set_layer_types(config, str(file))
        config.architectures = ["generic"]  # so that an artefact leads back here

    return load_config


def not_understood(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a config that could change the computation in an unknown way."""
    from transformers import GenerationConfig, PretrainedConfig

    neutral = {**dict.fromkeys(attributes), **PretrainedConfig().to_dict(), **_OFF}
    known = {*_USED, *_SHOWN, *_HARMLESS, *GenerationConfig().to_dict()}
    return {
        name: value
        for name, value in attributes.items()
        if not (
            name.startswith("_")
            or name in known
            or _TRAINING.search(name)
            or value is None
            or value == neutral[name]
        )
    }


class _AsWritten:
    """Just enough of a Hugging Face config: its attributes, without defaults."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def to_dict(self) -> dict[str, Any]:
        return dict(self._data)


def _read_attributes(
    config: InferenceConfig, data: Mapping[str, Any], folder: Path, has_head: bool
) -> None:
    from transformers import CONFIG_MAPPING

    if data.get("model_type") in CONFIG_MAPPING:
        load_pretrained_config(folder)(config)
        return
    limits.check_names(data, type(config), str(folder / "config.json"))
    as_written: Any = _AsWritten({"tie_word_embeddings": not has_head, **data})
    load_pretrained_config(hf_config=as_written)(config)
    limits.check_complete(vars(config), str(folder / "config.json"))


def _check_tensors(shapes: Shapes, folder: Path) -> None:
    if unknown := [name for name in shapes if not _TENSORS.fullmatch(name)]:
        raise UnsupportedError(
            f"{folder}: the checkpoint has tensors that the generic decoder does not know: "
            f"{listed(unknown)}; write a model for it (docs/add-a-model.md)"
        )


def _look_for_parts(config: InferenceConfig, shapes: Shapes) -> None:
    """Note which optional parts the first layer has; the others are checked against it later."""
    first = {
        name.partition("layers.0.")[2]: shape for name, shape in shapes.items() if ".0." in name
    }
    config.has_qkv_bias = "self_attn.q_proj.bias" in first
    config.has_o_bias = "self_attn.o_proj.bias" in first
    config.has_mlp_bias = "mlp.down_proj.bias" in first
    norm = first.get("self_attn.q_norm.weight")
    config.has_qk_norm = norm is not None
    if norm is not None and norm != (config.head_dim,):
        raise UnsupportedError(
            f"the checkpoint's q_norm has shape {norm}; the generic decoder knows norms of one "
            f"head only, of shape {(config.head_dim,)}; write a model for it (docs/add-a-model.md)"
        )


def _check_attributes(config: InferenceConfig, file: str) -> None:
    if difference := _LOOK_ALIKES.get(getattr(config, "model_type", None) or ""):
        raise UnsupportedError(
            f"{file}: model_type={config.model_type!r} looks like Llama but is not: {difference}; "
            "write a model for it (docs/add-a-model.md)"
        )
    if missing := [name for name in _ESSENTIAL if getattr(config, name, None) is None]:
        raise ConfigError(
            f"{file}: the generic decoder needs {', '.join(missing)}, and knows no defaults; add "
            "what the original implementation uses"
        )
    attributes = {name: value for name, value in vars(config).items() if name not in _OURS}
    if unknown := not_understood(attributes):
        shown = ", ".join(f"{name}={limits.shown(value)}" for name, value in unknown.items())
        raise UnsupportedError(
            f"{file}: the generic decoder does not know what these attributes change: {shown}; "
            "remove those that change nothing, or write a model for it (docs/add-a-model.md)"
        )
    for name, part in _SHOWN.items():
        if getattr(config, name, None) is True and not getattr(config, part):
            raise ConfigError(
                f"{file}: {name}=True, but the checkpoint has no such tensors; correct either"
            )


def _check_rope(config: InferenceConfig, file: str) -> None:
    parameters = config.rope_parameters
    if unknown := {k: v for k, v in parameters.items() if k not in _ROPE and v is not None}:
        raise UnsupportedError(
            f"{file}: the generic decoder does not know these RoPE parameters: "
            f"{limits.shown(unknown)}; write a model for it (docs/add-a-model.md)"
        )
    turned = int(config.head_dim * (parameters.get("partial_rotary_factor") or 1))
    if turned < 2 or turned % 2:
        raise ConfigError(
            f"{file}: partial_rotary_factor={parameters['partial_rotary_factor']} of head_dim="
            f"{config.head_dim} turns {turned} values, which must be even and at least 2"
        )


def _set_layer_types(config: InferenceConfig, file: str) -> None:
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", None) is False:
        window = None
    types = getattr(config, "layer_types", None)
    if types is None and window is not None:
        raise ConfigError(
            f"{file}: sliding_window={window}, but no layer_types say which layers it is for; add "
            'one of "sliding_attention" and "full_attention" for each layer'
        )
    types = types or ["full_attention"] * config.num_hidden_layers
    if unknown := {*types} - {"full_attention", "sliding_attention"}:
        raise UnsupportedError(
            f"{file}: layer_types has {', '.join(map(limits.shown, sorted(unknown)))}; the generic "
            "decoder knows full_attention and sliding_attention"
        )
    if "sliding_attention" in types and window is None:
        raise ConfigError(
            f"{file}: layer_types has sliding_attention, but sliding_window is off; give its size "
            "in tokens, or make those layers full_attention"
        )
    config.layer_types, config.sliding_window = types, window
