"""Whether two models have the same tokens."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.config import serialize
from nxdi.errors import ConfigError

if TYPE_CHECKING:
    from nxdi.models.application_base import NeuronApplicationBase

_TOKENIZER = "tokenizer.json"


def check_same_tokens(target: NeuronApplicationBase, draft: NeuronApplicationBase) -> None:
    """Raises: ConfigError if a draft model has another vocabulary or tokenizer than its target."""
    sizes = target.config.vocab_size, draft.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the draft model has vocab_size={sizes[1]}, the target {sizes[0]}; a draft model must "
            "have the target's tokens: take one of its family"
        )
    files = target.model_path / _TOKENIZER, draft.model_path / _TOKENIZER
    if not all(file.is_file() for file in files):
        return  # models without one are driven by token ids
    ids = [_token_ids(file, file.stat().st_mtime_ns) for file in files]
    different = sorted(text for text, number in ids[0].items() if ids[1].get(text) != number)
    if different or len(ids[0]) != len(ids[1]):
        example = repr(different[0]) if different else f"{len(ids[1])} tokens, not {len(ids[0])}"
        raise ConfigError(
            f"the draft model's {_TOKENIZER} differs from the target's ({example}); a draft model "
            "must have the target's tokens: take one of its family"
        )


@lru_cache(maxsize=4)
def _token_ids(file: Path, written_at: int) -> dict[str, int]:
    """The number of each token, those that were added too; `written_at`: of the file."""
    data = serialize.read_object(file)
    model: Any = data.get("model")
    vocab: Any = model.get("vocab") if isinstance(model, dict) else None
    added: Any = data.get("added_tokens") or []
    if isinstance(vocab, list):  # unigram: [text, score] in order
        vocab = {item[0]: number for number, item in enumerate(vocab)}
    return {**(vocab or {}), **{item["content"]: item["id"] for item in added}}
