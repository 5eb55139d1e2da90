"""What a model folder holds beside its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

_SUFFIXES = (".json", ".txt", ".model", ".jinja")  # tokenizer, chat template, generation defaults


def copy_companions(source: Path, target: Path) -> None:
    """Copy what goes with any weights; not the config, nor indexes of weights."""
    for file in source.iterdir():
        is_of_weights = file.name == "config.json" or file.name.endswith(".index.json")
        if file.suffix in _SUFFIXES and not is_of_weights:
            shutil.copy(file, target)
