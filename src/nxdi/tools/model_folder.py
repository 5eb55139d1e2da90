"""Writing model folders: where, and what they hold beside their weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from nxdi.errors import ConfigError

_SUFFIXES = (".json", ".txt", ".model", ".jinja")  # tokenizer, chat template, generation defaults


def check_empty(folder: Path) -> None:
    """Raises: ConfigError if there is something that a new model folder would replace."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; choose another folder, or empty this one")


def copy_companions(source: Path, target: Path) -> None:
    """Copy what goes with any weights; not the config, nor indexes of weights."""
    for file in source.iterdir():
        is_of_weights = file.name == "config.json" or file.name.endswith(".index.json")
        if file.suffix in _SUFFIXES and not is_of_weights:
            shutil.copy(file, target)
