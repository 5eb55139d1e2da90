"""Hugging Face configs in one form, whichever dialect (transformers 4.57 or 5.x) they speak.

The one form has the names that models were written against: `rope_theta`, `rope_scaling` (None for
plain RoPE) and, with two kinds of layers, `rope_local_base_freq`; and `rope_parameters` as in 5.x.
`head_dim`, `num_key_value_heads` and `tie_word_embeddings` are filled in; not `pad_token_id`:
without one, generation pads with the end-of-sequence token.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from nxdi.config import limits, serialize
from nxdi.config.keywords import to_torch_dtype
from nxdi.config.validate import check_weight_dtype
from nxdi.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from nxdi.config.inference import InferenceConfig

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NOT_MODEL_ATTRIBUTES = {"neuron_config", "fused_spec_config", "metadata", "attribute_map"}


def load_pretrained_config(
    model_path_or_name: str | PathLike[str] | None = None,
    hf_config: PretrainedConfig | None = None,
) -> Callable[[InferenceConfig], None]:
    """A `load_config` hook that fills an InferenceConfig from a Hugging Face config.

    Give exactly one of a model folder (or Hugging Face id) and a config object. No code from the
    folder is run. The checkpoint's dtype is taken unless the NeuronConfig was given one.

    Raises: ConfigError for both or neither; the hook raises it for a config that is missing,
        corrupt, of a type transformers does not know, or with malformed RoPE parameters.
    """
    if (model_path_or_name is None) == (hf_config is None):
        raise ConfigError("give exactly one of model_path_or_name and hf_config")

    def load_config(config: InferenceConfig) -> None:
        if model_path_or_name is None:
            source, attributes = hf_config, _normalise(hf_config)
        else:
            source = _read(model_path_or_name, type(config))
            attributes = _normalise(source)
            limits.check_complete(attributes, str(model_path_or_name))
        dtype = attributes.pop("dtype")
        if dtype is not None and not config.neuron_config.overrides_torch_dtype:
            dtype = to_torch_dtype(dtype)
            check_weight_dtype(dtype)
            config.neuron_config.torch_dtype = dtype
        config.attribute_map = dict(getattr(source, "attribute_map", {}))
        for name in attributes.keys() - _NOT_MODEL_ATTRIBUTES:
            setattr(config, name, attributes[name])

    return load_config


def to_pretrained_config(config: InferenceConfig) -> PretrainedConfig:
    """The Hugging Face attributes as a plain PretrainedConfig, for code that expects one."""
    from transformers import PretrainedConfig

    # transformers 5 would fold `rope_scaling` into `rope_parameters`, which have it already.
    left_out = {*_NOT_MODEL_ATTRIBUTES, "rope_scaling", "dtype", "torch_dtype"}
    attributes: Any = {
        name: vars(value) if isinstance(value, SimpleNamespace) else value
        for name, value in serialize.public(config).items()
        if name not in left_out
    }
    made = PretrainedConfig(**attributes, dtype=config.neuron_config.torch_dtype)
    for alias, name in config.attribute_map.items():
        if hasattr(config, name):
            setattr(made, alias, getattr(config, name))
    return made


def _read(model_path_or_name: str | PathLike[str], owner: type) -> PretrainedConfig:
    """Read a model's config.json through transformers, never running code that came with it."""
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers import __version__ as transformers_version
    from transformers.utils.hub import cached_file

    source = str(model_path_or_name)
    folder = Path(source).expanduser()
    try:
        if folder.is_dir():
            source, file = str(folder), folder / "config.json"
        elif _HUB_ID.fullmatch(source):
            file = Path(str(cached_file(source, "config.json")))
        else:
            raise ConfigError(f"no model folder at {source!r}; correct the path")
        data = check_config_file(file)
        limits.check_names(data, owner, str(file))
        model_type = data.get("model_type")
        if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
            raise ConfigError(
                f"{file}: transformers {transformers_version} does not know model_type="
                f"{limits.shown(model_type)}, and code from a model folder is never run; give a "
                "config object as hf_config, or write a load_config for this model"
            )
        found: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except ConfigError:
        raise
    except Exception as error:  # transformers raises whatever its parsers raise; all mean the same
        raise ConfigError(
            f"no usable config for {source!r}: {error}; give an existing model folder or "
            "Hugging Face id, and correct the values it names"
        ) from error
    return found


def check_config_file(file: Path) -> dict[str, Any]:
    """Check the values of a config.json, before transformers makes anything of them.

    Returns: its content.
    Raises: ConfigError naming the file and the value.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    data = serialize.read_object(file)
    model_type = data.get("model_type")
    config_cls: type = PretrainedConfig
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        config_cls = CONFIG_MAPPING[model_type]
    limits.check_names(data, config_cls, str(file))
    limits.check_values(data, getattr(config_cls, "attribute_map", {}), str(file))
    return data


def _normalise(source: Any) -> dict[str, Any]:
    """The attributes of a Hugging Face config in the one form; nested configs as namespaces."""
    attributes: dict[str, Any] = source.to_dict()
    for name in attributes:
        nested = getattr(source, name, None)
        if hasattr(nested, "to_dict"):
            inner = _normalise(nested)
            del inner["dtype"]
            attributes[name] = SimpleNamespace(**inner)
    older_dtype = attributes.pop("torch_dtype", None)
    attributes["dtype"] = attributes.get("dtype") or older_dtype
    aliases = getattr(source, "attribute_map", {})
    _fill_defaults(attributes, aliases)
    _fill_rope(attributes)
    return attributes


def _fill_defaults(attributes: dict[str, Any], aliases: dict[str, str]) -> None:
    """Give the attributes that models read even where a family's config leaves them out."""

    def value_of(name: str) -> Any:
        return attributes.get(aliases.get(name, name))

    def fill(name: str, value: Any) -> None:
        if value_of(name) is None:
            attributes[aliases.get(name, name)] = value

    num_heads, hidden_size = value_of("num_attention_heads"), value_of("hidden_size")
    fill("tie_word_embeddings", False)
    if isinstance(num_heads, int) and num_heads > 0:
        fill("num_key_value_heads", num_heads)
        if isinstance(hidden_size, int):
            fill("head_dim", hidden_size // num_heads)


def _fill_rope(attributes: dict[str, Any]) -> None:
    """Give both spellings of the RoPE parameters, from whichever is there; neither: no RoPE."""
    parameters = attributes.get("rope_parameters") or _rope_from_4x(attributes)
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise ConfigError(f"rope_parameters={limits.shown(parameters)} must be a mapping or absent")
    is_by_layer_type = all(isinstance(value, dict) for value in parameters.values())
    for each in parameters.values() if is_by_layer_type else [parameters]:
        _check_rope(each)
    attributes["rope_parameters"] = parameters
    if not is_by_layer_type:
        attributes |= _rope_to_4x(parameters)
    elif "full_attention" in parameters and "sliding_attention" in parameters:
        attributes |= _rope_to_4x(parameters["full_attention"])
        attributes["rope_local_base_freq"] = parameters["sliding_attention"].get("rope_theta")


def _rope_from_4x(attributes: dict[str, Any]) -> dict[str, Any] | None:
    """`rope_parameters` made from `rope_theta`, `rope_scaling` and their companions."""
    theta, scaling = attributes.get("rope_theta"), attributes.get("rope_scaling")
    if theta is None and scaling is None:
        return None
    if scaling is not None and not isinstance(scaling, dict):
        raise ConfigError(
            f"rope_scaling={limits.shown(scaling)} must be a mapping with a rope_type, or null"
        )
    scaling = dict(scaling or {"rope_type": "default"})
    if "rope_type" not in scaling:
        # Older checkpoints say `type`.
        scaling["rope_type"] = scaling.get("type")
    if scaling["rope_type"] == "longrope":
        # Phi-3 keeps it beside the scaling.
        trained_len = attributes.get("original_max_position_embeddings")
        scaling.setdefault("original_max_position_embeddings", trained_len)
    companions = {
        name: attributes[name]
        for name in ("rope_theta", "partial_rotary_factor")
        if attributes.get(name) is not None
    }
    local_theta = attributes.get("rope_local_base_freq")
    if local_theta is None:
        return scaling | companions
    return {
        "full_attention": scaling | companions,
        "sliding_attention": companions | {"rope_type": "default", "rope_theta": local_theta},
    }


def _rope_to_4x(parameters: dict[str, Any]) -> dict[str, Any]:
    """The 4.x attributes of one set of 5.x parameters."""
    companions = ("rope_theta", "partial_rotary_factor")
    scaling = {name: value for name, value in parameters.items() if name not in companions}
    named: dict[str, Any] = {name: parameters[name] for name in companions if name in parameters}
    named["rope_scaling"] = None if scaling == {"rope_type": "default"} else scaling
    return named


def _check_rope(parameters: dict[str, Any]) -> None:
    """Refuse what would silently become plain RoPE, which transformers only warns about."""
    kind, said = parameters.get("rope_type"), f"the RoPE parameters {limits.shown(parameters)}"
    if not isinstance(kind, str):
        raise ConfigError(f"{said} name no rope_type; add one")
    if kind == "default" and "factor" in parameters:
        raise ConfigError(
            f"{said} have a factor and rope_type 'default', which does not scale; name the "
            "rope_type that is meant, such as 'linear', or remove the factor"
        )
    limits.check_rope_numbers(parameters)
