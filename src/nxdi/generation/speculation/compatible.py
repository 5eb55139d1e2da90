"""Whether a draft model can serve a target: the same tokens, enough rows, a cache that forgives."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from nxdi.config import serialize
from nxdi.errors import ConfigError
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.modules.kvcache import RollingCache
from nxdi.types import Phase

_TOKENIZER = "tokenizer.json"


def check_compatible(target: NeuronBaseForCausalLM, draft: NeuronBaseForCausalLM) -> None:
    """Raises: ConfigError naming what the draft model lacks."""
    sizes = target.config.vocab_size, draft.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the draft model has vocab_size={sizes[1]}, the target {sizes[0]}; a draft model must "
            "have the target's tokens: take one of its family"
        )
    _check_tokenizers(target.model_path, draft.model_path)
    config, own = target.neuron_config, draft.neuron_config
    if own.tkg_batch_size < config.tkg_batch_size:
        raise ConfigError(
            f"the draft model has {own.tkg_batch_size} rows, the target {config.tkg_batch_size}; "
            "compile the draft model with the target's batch_size"
        )
    if own.num_retractable < config.num_retractable and _has_window(draft):
        raise ConfigError(
            "the draft model's attention has a window, whose cache forgets what rejected tokens "
            f"replace; compile it with the target's speculation_length={config.num_verified}"
        )


def _has_window(model: NeuronBaseForCausalLM) -> bool:
    module: Any = model.build(Phase.DECODE)
    return any(isinstance(layout, RollingCache) for layout in module.cache_layouts())


def _check_tokenizers(target: Path, draft: Path) -> None:
    files = target / _TOKENIZER, draft / _TOKENIZER
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
    data = serialize.parse(serialize.read_text(file), str(file))
    model: Any = data.get("model")
    vocab: Any = model.get("vocab") if isinstance(model, dict) else None
    added: Any = data.get("added_tokens") or []
    if isinstance(vocab, list):  # unigram: [text, score] in order
        vocab = {item[0]: number for number, item in enumerate(vocab)}
    return {**(vocab or {}), **{item["content"]: item["id"] for item in added}}
