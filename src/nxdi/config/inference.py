"""InferenceConfig: the Hugging Face attributes of a model together with its NeuronConfig."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from nxdi.config import serialize
from nxdi.config.from_hf import load_pretrained_config
from nxdi.config.keywords import check_known
from nxdi.config.medusa import num_blocks
from nxdi.config.neuron import NeuronConfig
from nxdi.config.speculation import FusedSpecNeuronConfig
from nxdi.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound="InferenceConfig")


class InferenceConfig:
    """What a model is (`hidden_size`, ... as plain attributes) and how it runs (`neuron_config`).

    Built in NxDI's order: `load_config(self)`, then the keywords, then `add_derived_config()`,
    then `validate_config()`. Private attributes (leading underscore) are not saved.

    Raises: ConfigError if a required attribute is missing.
    """

    medusa_num_layers = 1  # residual blocks of a Medusa head
    attribute_map: dict[str, str] = {}  # noqa: RUF012 - HF's name and form; ports rebind, never mutate

    def __init__(
        self,
        neuron_config: NeuronConfig,
        fused_spec_config: FusedSpecNeuronConfig | None = None,
        load_config: Callable[[Any], None] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(neuron_config, NeuronConfig):
            raise ConfigError(f"neuron_config={neuron_config!r} must be a NeuronConfig")
        self.neuron_config = neuron_config
        self.fused_spec_config = fused_spec_config
        self.metadata = metadata
        if load_config is not None:
            load_config(self)
        else:
            self.load_config()
        # The aliases first: they decide where the other names are stored.
        self.attribute_map = kwargs.pop("attribute_map", self.attribute_map)
        heads = neuron_config.medusa_heads_path
        if heads is not None and "medusa_num_layers" not in kwargs:
            self.medusa_num_layers = num_blocks(Path(heads))
        for name, value in kwargs.items():
            setattr(self, name, value)
        self.add_derived_config()
        self.validate_config()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(self.attribute_map.get(name, name), value)

    def __getattr__(self, name: str) -> Any:
        # Python calls this only for names that normal lookup did not find.
        if name in self.attribute_map:
            return getattr(self, self.attribute_map[name])
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InferenceConfig):
            return NotImplemented
        return type(self) is type(other) and self.to_json_string() == other.to_json_string()

    def load_config(self) -> None:
        """Set the model's attributes; used when no `load_config` hook is given."""

    def add_derived_config(self) -> None:
        """Set attributes that follow from the others."""

    def get_required_attributes(self) -> list[str]:
        """Names without which the model cannot be built; "a.b" is a nested attribute."""
        return []

    def validate_config(self) -> None:
        """Raise ConfigError naming every required attribute that is missing."""
        missing = [name for name in self.get_required_attributes() if not self._has(name)]
        if missing:
            raise ConfigError(
                f"{type(self).__name__} needs {', '.join(missing)}; give them as keywords or "
                "through load_config"
            )

    def _has(self, dotted_name: str) -> bool:
        owner: Any = self
        for part in dotted_name.split("."):
            if not hasattr(owner, part):
                return False
            owner = getattr(owner, part)
        return True

    def get_text_config(self) -> Any:
        """The part that describes the text decoder: `text_config` if there is one, else this."""
        return getattr(self, "text_config", self)

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        """The class of `neuron_config`; a model with its own options overrides this."""
        return NeuronConfig

    @classmethod
    def from_pretrained(
        cls: type[ConfigT],
        model_path: str | PathLike[str],
        neuron_config: NeuronConfig | None = None,
        **kwargs: Any,
    ) -> ConfigT:
        """The config of a Hugging Face model folder or id; `kwargs` override its attributes."""
        if neuron_config is None:
            neuron_config = cls.get_neuron_config_cls()()
        return cls(neuron_config, load_config=load_pretrained_config(model_path), **kwargs)

    def save(self, model_path: str | PathLike[str]) -> None:
        """Write `neuron_config.json` into a folder, which is created if need be."""
        folder = Path(model_path)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / serialize.CONFIG_FILE)

    @classmethod
    def load(cls: type[ConfigT], model_path: str | PathLike[str], **overrides: Any) -> ConfigT:
        """Read `neuron_config.json` from a folder; `overrides` replace attributes of the file."""
        return cls.from_json_file(Path(model_path) / serialize.CONFIG_FILE, **overrides)

    def to_json_file(self, json_file: str | PathLike[str]) -> None:
        """Write the config as JSON."""
        Path(json_file).write_text(self.to_json_string() + "\n", encoding="utf-8")

    @classmethod
    def from_json_file(
        cls: type[ConfigT], json_file: str | PathLike[str], **overrides: Any
    ) -> ConfigT:
        """Read a config written by `to_json_file`. Raises: ConfigError naming the file."""
        text = serialize.read_text(Path(json_file))
        return cls._from_data(serialize.parse(text, str(json_file)), overrides)

    def to_json_string(self) -> str:
        """The config as JSON with sorted keys.

        Raises: ConfigError naming an attribute that has no JSON form.
        """
        attributes = serialize.public(self)
        if self.fused_spec_config is not None:
            attributes["fused_spec_config"] = self.fused_spec_config.attributes()
        return serialize.to_json_string(attributes)

    @classmethod
    def from_json_string(cls: type[ConfigT], json_string: str, **overrides: Any) -> ConfigT:
        """The inverse of `to_json_string`; `overrides` replace attributes of the text."""
        return cls._from_data(serialize.parse(json_string, "the config text"), overrides)

    @classmethod
    def _from_data(cls: type[ConfigT], data: dict[str, Any], overrides: dict[str, Any]) -> ConfigT:
        for name in data:
            # A class read from the file must never stand in for a method, and so be called.
            if callable(getattr(cls, name, None)):
                raise ConfigError(
                    f"{name!r} is a method of {cls.__name__}; remove it from the file"
                )
        neuron_data, fused = data.pop("neuron_config", None), data.pop("fused_spec_config", None)
        attributes = {name: serialize.decode(value) for name, value in data.items()} | overrides
        if fused is not None:
            attributes.setdefault("fused_spec_config", cls._read_fused(fused))
        if "neuron_config" not in overrides:
            if not isinstance(neuron_data, dict):
                raise ConfigError("the saved config has no neuron_config; give one as a keyword")
            attributes["neuron_config"] = serialize.make_config(
                cls.get_neuron_config_cls(), neuron_data
            )
        return cls(**attributes)

    @classmethod
    def _read_fused(cls, data: Any) -> FusedSpecNeuronConfig:
        """What FusedSpecNeuronConfig.attributes has made, from JSON data.

        Raises: ConfigError for anything else.
        """
        names = [f.name for f in fields(FusedSpecNeuronConfig)]
        given = data if isinstance(data, dict) else {}
        check_known("fused_spec_config", given, names)
        if not isinstance(config := given.get("draft_config"), dict):
            raise ConfigError("the saved fused_spec_config has no draft_config; restore the file")
        attributes = {
            name: serialize.decode(given.get(name)) for name in names if name != "draft_config"
        }
        draft_cls = getattr(attributes["draft_model_cls"], "_config_cls", cls)
        if not (isinstance(draft_cls, type) and issubclass(draft_cls, InferenceConfig)):
            raise ConfigError(
                f"draft_model_cls={attributes['draft_model_cls']!r} serves no model; restore the "
                "file"
            )
        return FusedSpecNeuronConfig(**attributes, draft_config=draft_cls._from_data(config, {}))
