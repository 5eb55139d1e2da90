"""What the tokenizer files of a model folder may say, checked before transformers reads them.

The parsers behind it believe what they read: one token with a huge id takes gigabytes, a few rules
that each double a text take all memory with the first prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nxdi.config import serialize
from nxdi.config.limits import shown
from nxdi.errors import ConfigError

_SETTINGS = (
    *("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.json",
)
# Several times what the largest published tokenizers have.
_MAX_SIZE = 128 << 20  # bytes of tokenizer.json
_MAX_TOKEN_ID = 2**24
_MAX_SPECIAL_TOKENS = 4096  # besides those in tokenizer.json; adding them takes quadratic time
_MAX_GROWTH = 4096  # of a text by all replacements together
_MAX_TEMPLATE = 256  # pieces around and between texts


def check_tokenizer_files(folder: Path) -> None:
    """Raises: ConfigError naming a file that transformers should not be left to read."""
    for file in sorted(folder.iterdir()):
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise ConfigError(f"{file} is a pipe or a device; remove it")
    for name in _SETTINGS:
        if (file := folder / name).exists():
            data = serialize.read_object(file)
            _check_class(data.get("tokenizer_class"), file)
            _check_special_tokens(data, file)
    if (file := folder / "tokenizer.json").exists():
        _check_rules(file)


def _check_class(name: object, file: Path) -> None:
    """transformers takes any class of its own for a tokenizer, models too, and loads it."""
    import transformers

    if name is None:
        return
    if not isinstance(name, str):
        raise ConfigError(f"{file}: tokenizer_class must be a name; correct it")
    for each in (name, f"{name}Fast"):
        found = getattr(transformers, each, None)
        if found is not None and not (
            isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase)
        ):
            raise ConfigError(f"{file}: tokenizer_class={each!r} is no tokenizer; correct it")


def _check_special_tokens(data: dict[str, Any], file: Path) -> None:
    for name in ("extra_special_tokens", "additional_special_tokens"):
        tokens = data.get(name)
        if isinstance(tokens, (dict, list)) and len(tokens) > _MAX_SPECIAL_TOKENS:
            raise ConfigError(
                f"{file}: {name} holds {len(tokens)} tokens, more than {_MAX_SPECIAL_TOKENS}; "
                "put them into tokenizer.json"
            )


def _check_rules(file: Path) -> None:
    """Check tokenizer.json as far as its own parser does not."""
    try:
        data = json.loads(serialize.read_text(file, _MAX_SIZE))
        rules = list(_mappings({**data, "model": None, "added_tokens": None}))
        vocab, added = data["model"]["vocab"], data.get("added_tokens") or ()
        ids = vocab.values() if isinstance(vocab, dict) else ()  # in a list, places are the ids
        highest = max((0, *ids, *(token["id"] for token in added)))
    except ConfigError:
        raise
    except Exception as error:  # whatever is not where it should be
        reason = shown(str(error))
        raise ConfigError(
            f"{file}: its tokenizer cannot be loaded ({reason}); restore it"
        ) from error
    growth = math.prod(_growth(rule) for rule in rules)
    longest = max(
        (len(v) for rule in rules for v in rule.values() if isinstance(v, list)), default=0
    )
    if not highest <= _MAX_TOKEN_ID:
        raise ConfigError(
            f"{file}: token id {shown(highest)} is more than {_MAX_TOKEN_ID}; restore it"
        )
    if growth > _MAX_GROWTH or longest > _MAX_TEMPLATE:
        raise ConfigError(
            f"{file}: its rules can make a text {growth} times as long, or have {longest} steps; "
            f"the limits are {_MAX_GROWTH} and {_MAX_TEMPLATE}: restore it"
        )


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside `value`, which a parser has kept from nesting too deep."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, (dict, list)):
            yield from _mappings(inner)


def _growth(rule: dict[str, Any]) -> int:
    """The most characters that one rule puts in the place of one."""
    texts = [rule.get(name) for name in ("content", "prepend", "replacement")]
    return max(1, *(len(text) for text in texts if isinstance(text, str)), 1)
