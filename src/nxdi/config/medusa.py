"""What a folder of Medusa heads says of them."""

from __future__ import annotations

from pathlib import Path

from nxdi.config import limits, serialize

# As their authors have it, and vLLM.
_NAMES = ("medusa_num_layers", "num_hidden_layers")


def num_blocks(folder: Path) -> int:
    """Residual blocks of each head, as the folder's config.json has it; 1 if it says nothing.

    How many heads there are is not read there: published folders have it wrong.
    Raises: ConfigError for a config.json that is missing or says nonsense.
    """
    file = folder / "config.json"
    data = serialize.read_object(file)
    limits.check_values(data, {}, str(file))
    return next((data[name] for name in _NAMES if data.get(name) is not None), 1)
