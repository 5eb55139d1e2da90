"""Generating text from a prompt, as `generate` and `chat` do it: sampling options and streaming."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from nxdi.cli.numbers import within

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_MAX_NEW_TOKENS = 256


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Add the length of the answer, how to sample it, and whether to stream it."""
    group = parser.add_argument_group("answer options")
    group.add_argument(
        "--max-new-tokens",
        type=within(int, 1),
        metavar="N",
        help=f"most tokens to add (default: {DEFAULT_MAX_NEW_TOKENS}, or fewer if the sequence "
        "length leaves less room)",
    )
    group.add_argument("--temperature", type=within(float, 0), metavar="T", help="0 is greedy")
    group.add_argument("--top-k", type=within(int, 1), metavar="K", help="the K likeliest tokens")
    group.add_argument(
        "--top-p", type=within(float, 0, 1), metavar="P", help="the likeliest tokens, up to mass P"
    )
    group.add_argument("--seed", type=int, metavar="N", help="repeatable sampling")
    group.add_argument("--no-stream", action="store_true", help="print the answer when complete")
    parser.epilog = (
        "Decoding is greedy unless --temperature, --top-k or --top-p is given; then tokens are "
        "sampled, with no other limit than the ones given."
    )


def sampling_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `generate()` for the sampling options."""
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    given = {name: getattr(args, name) for name in neutral if getattr(args, name) is not None}
    if not given or args.temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, **neutral, **given}


def print_answer(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompt: Any, args: argparse.Namespace
) -> str:
    """Generate from a tokenized prompt of one row and print the text, as it comes or at the end.

    Returns: the text.
    """
    from transformers import TextStreamer

    from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter

    input_ids = prompt["input_ids"]
    prompt_len = input_ids.shape[1]
    room = model.neuron_config.seq_len - prompt_len
    max_new_tokens = args.max_new_tokens
    if max_new_tokens is None:  # a prompt that leaves no room is for the library to refuse
        max_new_tokens = max(1, min(room, DEFAULT_MAX_NEW_TOKENS))
    streamer = None if args.no_stream else TextStreamer(tokenizer, True, skip_special_tokens=True)
    output = HuggingFaceGenerationAdapter(model).generate(
        input_ids,
        attention_mask=prompt["attention_mask"],
        max_new_tokens=max_new_tokens,
        streamer=streamer,
        **sampling_keywords(args),
    )
    text = str(tokenizer.decode(output[0, prompt_len:], skip_special_tokens=True))
    if args.no_stream:
        print(text)
    return text


def set_seed(args: argparse.Namespace) -> None:
    """Start the random generator where --seed says."""
    if args.seed is not None:
        import torch

        torch.manual_seed(args.seed)
