from __future__ import annotations

import random
import string
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nxdi.generation.streaming import TextStream


@pytest.fixture(scope="module")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and a special one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def pieces(stream: TextStream, ids: Sequence[int]) -> list[str]:
    """What each token adds, and last what the end adds; nothing follows a stop string."""
    got = []
    for token in ids:
        got.append(stream.push(token))
        if stream.is_stopped:
            return got
    return [*got, stream.end()]


def test_characters_are_whole(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = byte_tokenizer.encode("aé€b😀")
    stream = TextStream(byte_tokenizer)
    got = pieces(stream, ids)
    assert [piece for piece in got if piece] == ["a", "é", "€", "b", "😀"]
    assert stream.text == "aé€b😀"


def test_what_ends_within_a_character_comes_at_the_end(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids = byte_tokenizer.encode("a€")[:-1]
    assert pieces(TextStream(byte_tokenizer), ids) == ["a", "", "", "\ufffd"]


def test_special_tokens_are_not_text(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = byte_tokenizer.encode("ab")
    ids.insert(1, byte_tokenizer.eos_token_id)
    assert pieces(TextStream(byte_tokenizer), ids) == ["a", "", "b", ""]


def test_a_decoder_that_joins_words() -> None:
    """Decoded one by one, each word would lose the space before it."""
    words = ["▁one", "▁two", "three", "▁"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, words[0]))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert pieces(TextStream(tokenizer), [0, 1, 2, 1]) == ["one", " two", "three", " two", ""]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["cd"], ["a", "b", "", ""]),
        (["bc", "ab"], ["", ""]),
        (["cx"], ["a", "b", "", "cd", "e", ""]),
        (["de "], ["a", "b", "c", "", "", "de"]),
        (["abcdef"], ["", "", "", "", "", "abcde"]),
    ],
)
def test_stop_strings(
    byte_tokenizer: PreTrainedTokenizerFast, stop: list[str], expected: list[str]
) -> None:
    stream = TextStream(byte_tokenizer, stop)
    assert pieces(stream, byte_tokenizer.encode("abcde")) == expected
    assert stream.text == "".join(expected)


def test_the_first_stop_string_within_a_token_cuts(tokenizer: PreTrainedTokenizerFast) -> None:
    backend = Tokenizer(models.WordLevel({"xay": 0, "bzb": 1}, "xay"))
    backend.decoder = decoders.Fuse()
    stream = TextStream(PreTrainedTokenizerFast(tokenizer_object=backend), ["z", "yb"])
    assert pieces(stream, [0, 1]) == ["xa", ""]
    assert stream.end() == ""
    assert stream.text == "xa"


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes(byte_tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """All pieces joined are the text decoded at once, cut before the first stop string."""
    draw = random.Random(seed)
    text = "".join(draw.choices("ab€😀é" + string.digits[:2], k=30))
    ids = byte_tokenizer.encode(text)[: draw.randint(1, 60)]
    whole = byte_tokenizer.decode(ids)
    stop = ["".join(draw.choices("ab€1", k=draw.randint(1, 3))) for _ in range(2)]
    found = [whole.find(one) for one in stop if one in whole]
    stream = TextStream(byte_tokenizer, stop)
    assert "".join(pieces(stream, ids)) == whole[: min(found, default=len(whole))]
    assert stream.is_stopped is bool(found)
