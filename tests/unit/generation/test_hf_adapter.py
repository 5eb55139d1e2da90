"""generate(): every option gives what transformers gives, or is refused by name."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    WatermarkingConfig,
)

from nxdi.errors import UnsupportedError
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from tiny_models import VOCAB_SIZE
from tolerances import LOGITS_FP32

Adapter = HuggingFaceGenerationAdapter


def both(tiny: Any, adapter: Adapter, **options: Any) -> tuple[Any, Any]:
    """What transformers and nxdi generate from the same prompts, options and random seed."""
    outputs = []
    for generate in (tiny.hf.generate, adapter.generate):
        torch.manual_seed(0)
        outputs.append(generate(tiny.ids, attention_mask=tiny.mask, **options))
    return outputs[0], outputs[1]


class EvenTokens(LogitsProcessor):
    """Only tokens with an even id."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(torch.arange(scores.shape[-1]) % 2 == 1, -torch.inf)


class RowsInTurn(StoppingCriteria):
    """Row r has stopped once there are r + 3 new tokens; also checks the scores it is given."""

    def __init__(self, prompt_len: int, expects_scores: bool) -> None:
        self.prompt_len, self.expects_scores = prompt_len, expects_scores

    def __call__(self, input_ids: Tensor, scores: Any, **keywords: Any) -> Tensor:
        num_new = input_ids.shape[1] - self.prompt_len
        assert (scores is not None) == self.expects_scores
        assert scores is None or len(scores) == num_new
        return num_new >= torch.arange(len(input_ids)) + 3


def only_small(row: int, input_ids: Tensor) -> list[int]:
    return list(range(10 + row))


EOS = object()  # stands for a token that the greedy continuation comes to
GREEDY: dict[str, dict[str, Any]] = {
    "max_new_tokens": {"max_new_tokens": 5},
    "max_length": {"max_length": 15},
    "eos": {"eos_token_id": EOS, "pad_token_id": 7},
    "eos_without_pad": {"eos_token_id": EOS, "pad_token_id": None},
    "eos_list": {"eos_token_id": [EOS, 5, 6], "pad_token_id": 0},
    "min_new_tokens": {"eos_token_id": EOS, "min_new_tokens": 10},
    "min_length": {"eos_token_id": EOS, "min_length": 17},
    "max_time": {"max_time": 1e-9},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[EOS], [3, 4]]},
    "sequence_bias": {"sequence_bias": [[[5], 9.0]]},
    "suppress_tokens": {"suppress_tokens": [EOS, 1, 2]},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(48))},
    "forced_eos_token_id": {"forced_eos_token_id": 4},
    "exponential_decay": {"exponential_decay_length_penalty": (2, 3.0), "eos_token_id": 11},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": only_small},
    "logits_processor": {"logits_processor": LogitsProcessorList([EvenTokens()])},
    "stopping_criteria": {"stopping_criteria": StoppingCriteriaList([RowsInTurn(9, False)])},
    "stopping_without_eos": {
        "stopping_criteria": StoppingCriteriaList([RowsInTurn(9, False)]),
        "pad_token_id": 7,
    },
    "stopping_and_eos": {
        "stopping_criteria": StoppingCriteriaList([RowsInTurn(9, False)]),
        "eos_token_id": VOCAB_SIZE - 1,
        "pad_token_id": 7,
    },
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=8.0)},
    "generation_config": {"generation_config": GenerationConfig(max_new_tokens=6)},
    "generation_config_and_option": {
        "generation_config": GenerationConfig(max_new_tokens=6, repetition_penalty=1.5),
        "max_new_tokens": 4,
    },
}
SAMPLED: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.4},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.5},
    "min_p": {"min_p": 0.3},
    "typical_p": {"typical_p": 0.4},
    "epsilon_cutoff": {"epsilon_cutoff": 0.1},
    "eta_cutoff": {"eta_cutoff": 0.2},
    "several": {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
    "num_return_sequences": {"num_return_sequences": 2},
    "eos_and_pad": {"eos_token_id": list(range(30)), "pad_token_id": 0},
}
UNCHANGED: dict[str, dict[str, Any]] = {
    "num_beams": {"num_beams": 1},
    "guidance_scale": {"guidance_scale": 1.0},
    "use_cache": {"use_cache": False},
    "cache_implementation": {"cache_implementation": "static"},
    "remove_invalid_values": {"remove_invalid_values": True},
    "num_return_sequences": {"num_return_sequences": 1},
    "disable_compile": {"disable_compile": True},
}


def with_eos(options: dict[str, Any], token: int) -> dict[str, Any]:
    """The options with `token` in the place of EOS."""

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(item) for item in value]
        return token if value is EOS else value

    return {name: put(value) for name, value in options.items()}


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_option(name: str, tiny: Any, host: Adapter) -> None:
    eos = int(tiny.greedy()[1, 4])
    options = {"do_sample": False, **with_eos(GREEDY[name], eos)}
    if not options.keys() & {"max_length", "generation_config"}:
        options.setdefault("max_new_tokens", 20)
    expected, actual = both(tiny, host, **options)
    assert actual.tolist() == expected.tolist()
    plain = tiny.greedy()
    assert expected[:, 9:].tolist() != plain.tolist(), "the option must matter"


@pytest.mark.parametrize("name", SAMPLED)
def test_sampling_option(name: str, tiny: Any, host: Adapter) -> None:
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 20}
    plain, _ = both(tiny, host, **options)
    expected, actual = both(tiny, host, **{**options, **SAMPLED[name]})
    assert actual.tolist() == expected.tolist()
    assert expected.tolist() != plain.tolist(), "the option must matter"


def test_sampling_without_options(tiny: Any, host: Adapter) -> None:
    expected, actual = both(tiny, host, do_sample=True, max_new_tokens=20)
    assert actual.tolist() == expected.tolist()


@pytest.mark.parametrize("name", UNCHANGED)
def test_option_that_changes_no_token(name: str, tiny: Any, host: Adapter) -> None:
    out = host.generate(
        tiny.ids, attention_mask=tiny.mask, do_sample=False, max_new_tokens=20, **UNCHANGED[name]
    )
    assert out[:, 9:].tolist() == tiny.greedy().tolist()


def test_no_length_given_is_twenty_tokens(tiny: Any, host: Adapter) -> None:
    expected, actual = both(tiny, host, do_sample=False)
    assert actual.shape == expected.shape


def test_mask_inferred_from_the_pad_token(tiny: Any, host: Adapter) -> None:
    options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    expected = tiny.hf.generate(tiny.ids, **options)
    assert host.generate(input_ids=tiny.ids, **options).tolist() == expected.tolist()


@pytest.mark.parametrize("options", [{}, {"renormalize_logits": True, "repetition_penalty": 1.4}])
def test_logits_and_scores(options: dict[str, Any], tiny: Any, host: Adapter) -> None:
    stopping = StoppingCriteriaList([RowsInTurn(9, True)])
    expected, actual = both(
        tiny,
        host,
        do_sample=False,
        max_new_tokens=6,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        stopping_criteria=stopping,
        **options,
    )
    assert actual.sequences.tolist() == expected.sequences.tolist()
    for name in ("scores", "logits"):
        got, wanted = getattr(actual, name), getattr(expected, name)
        assert len(got) == len(wanted) == 5
        torch.testing.assert_close(got, wanted, rtol=0, atol=LOGITS_FP32)


@pytest.mark.parametrize(("asked", "other"), [("logits", "scores"), ("scores", "logits")])
def test_a_dictionary_holds_what_was_asked_for(
    asked: str, other: str, tiny: Any, host: Adapter
) -> None:
    options = {"max_new_tokens": 2, "return_dict_in_generate": True, f"output_{asked}": True}
    _, out = both(tiny, host, **options)
    assert len(getattr(out, asked)) == 2
    assert getattr(out, other) is None


def test_stop_strings(tiny: Any, host: Adapter, tokenizer: PreTrainedTokenizerFast) -> None:
    stop = tokenizer.decode(tiny.greedy()[1, 4:6])
    expected, actual = both(
        tiny, host, stop_strings=[stop], tokenizer=tokenizer, do_sample=False, max_new_tokens=20
    )
    assert actual.tolist() == expected.tolist()
    row = tiny.ids[1:2]
    alone = host.generate(row, stop_strings=stop, tokenizer=tokenizer, max_new_tokens=20)
    assert alone.shape[1] == row.shape[1] + 6


def test_text_streamer(
    tiny: Any,
    host: Adapter,
    tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = []
    for generate in (tiny.hf.generate, host.generate):
        streamer = TextStreamer(tokenizer, skip_prompt=True)
        generate(tiny.ids[1:2], max_new_tokens=12, do_sample=False, streamer=streamer)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert len(shown[1]) >= 12


def test_text_iterator_streamer(
    tiny: Any, host: Adapter, tokenizer: PreTrainedTokenizerFast
) -> None:
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    options = {"max_new_tokens": 12, "do_sample": False, "streamer": streamer}
    thread = Thread(target=host.generate, args=(tiny.ids[1:2],), kwargs=options)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(tiny.greedy(12)[1])


REFUSED: dict[str, Any] = {
    "num_beams": 2,
    "num_beam_groups": 2,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "constraints": [object()],
    "force_words_ids": [[1]],
    "assistant_early_exit": 1,
    "assistant_tokenizer": object(),
    "custom_generate": lambda model, **keywords: None,
    "token_healing": True,
    "negative_prompt_ids": torch.ones(1, 2, dtype=torch.int64),
    "negative_prompt_attention_mask": torch.ones(1, 2, dtype=torch.int64),
    "guidance_scale": 2.0,
    "cache_implementation": "quantized",
    "past_key_values": (),
    "inputs_embeds": torch.zeros(1, 2, 64),
    "output_attentions": True,
    "output_hidden_states": True,
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_algorithms_are_refused_by_name(name: str, tiny: Any, host: Adapter) -> None:
    with pytest.raises(UnsupportedError, match=rf"generate\({name}=.*leave {name} out"):
        host.generate(tiny.ids, max_new_tokens=2, **{name: REFUSED[name]})


@pytest.mark.parametrize("name", ["num_beams", "guidance_scale"])
def test_a_generation_config_is_refused_by_name(name: str, tiny: Any, host: Adapter) -> None:
    config = GenerationConfig(max_new_tokens=2, **{name: REFUSED[name]})
    with pytest.raises(UnsupportedError, match=name):
        host.generate(tiny.ids, generation_config=config)


def test_an_option_nobody_knows_is_an_error(tiny: Any, host: Adapter) -> None:
    with pytest.raises(ValueError, match="max_new_token"):
        host.generate(tiny.ids, max_new_token=2)


def test_a_forward_of_the_adapter_is_a_prefill(tiny: Any, host: Adapter) -> None:
    with torch.no_grad():
        expected = tiny.hf(tiny.ids, attention_mask=tiny.mask).logits[:, -1:]
    logits = host.forward(tiny.ids, attention_mask=tiny.mask).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=LOGITS_FP32)


def test_the_reference_can_tell_options_apart(tiny: Any) -> None:
    assert all(len(set(row)) >= 8 for row in tiny.greedy().tolist())
