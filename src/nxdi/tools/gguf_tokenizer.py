"""The byte-level BPE tokenizer in a GGUF file, in the form transformers loads.

transformers has a converter of its own. It is not used: it ignores how the file says that text is
split into words, and transformers 4 adds a first token that the file says is not wanted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from nxdi.errors import UnsupportedError, WeightError
from nxdi.tools.gguf_file import TOKENS, GgufFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTROL, USER_DEFINED = 3, 4  # token types: never text, and text that is never split
SPECIAL_IDS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def read_special_ids(file: GgufFile) -> dict[str, int]:
    """The ids of the `bos`, `eos`, `pad` and `unk` tokens, as far as the file names them.

    Raises: WeightError for an id outside the vocabulary.
    """
    num_tokens, ids = len(file.array(TOKENS, str)), {}
    for name, key in SPECIAL_IDS.items():
        token_id = file.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is None:
            continue
        if type(token_id) is not int or not 0 <= token_id < num_tokens:
            raise WeightError(
                f"{file.path}: tokenizer.ggml.{key}_token_id is {token_id!r}, outside the "
                f"vocabulary of {num_tokens}; fetch the file again"
            )
        ids[name] = token_id
    return ids


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, the same for transformers 4 and 5.

    Raises: UnsupportedError for another kind of tokenizer, WeightError for a damaged one.
    """
    tokens = file.array(TOKENS, str)
    special = {name: tokens[token_id] for name, token_id in read_special_ids(file).items()}
    template = file.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise WeightError(f"{file.path}: its chat template is not a text; fetch it again")
    backend = _make_bpe(file, tokens)
    _surround(file, backend, special)
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.integer("context_length"),
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
        **{f"{name}_token": token for name, token in special.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _make_bpe(file: GgufFile, tokens: list[str]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    splits = {"gpt-2": gpt2, "smollm": pre_tokenizers.Sequence([digits, gpt2])}
    kind, split = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in splits:
        raise UnsupportedError(
            f"{file.path}: its tokenizer is of kind {kind!r} and splits text as {split!r}; the "
            f"converter knows 'gpt2' with {' or '.join(splits)}; use the model's Hugging Face "
            "folder instead"
        )
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    if not len(vocab) == len(tokens) <= file.integer("vocab_size", len(tokens)):
        raise WeightError(
            f"{file.path}: its tokens are not distinct, or more than the model has; fetch it again"
        )
    merges = [merge.partition(" ")[::2] for merge in file.array("tokenizer.ggml.merges", str)]
    try:
        backend = Tokenizer(models.BPE(vocab, merges))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise WeightError(
            f"{file.path}: its tokenizer is damaged ({error}); fetch it again"
        ) from error
    backend.pre_tokenizer, backend.decoder = splits[split], decoders.ByteLevel()
    types = zip(tokens, file.array("tokenizer.ggml.token_type", int), strict=False)
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=token_type == CONTROL)
            for token, token_type in types
            if token_type in (CONTROL, USER_DEFINED)
        ]
    )
    return backend


def _surround(file: GgufFile, backend: Tokenizer, special: dict[str, str]) -> None:
    """Let every text begin with `bos` and end with `eos`, if the file asks for it."""
    from tokenizers import processors

    wanted = [n for n in ("bos", "eos") if file.get(f"tokenizer.ggml.add_{n}_token")]
    if nameless := [name for name in wanted if name not in special]:
        raise WeightError(
            f"{file.path} adds a {nameless[0]} token to texts and lacks its id; fetch it again"
        )
    before, after = ([special[n]] if n in wanted else [] for n in ("bos", "eos"))
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(token, backend.token_to_id(token)) for token in (*before, *after)],
    )
