"""The `inference_demo` command: compile, load, check, generate and measure, with NxDI's options."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from nxdi.cli.demo_models import make_models
from nxdi.cli.demo_options import make_parser, neuron_keywords, sampling_keywords
from nxdi.cli.model_options import load_tokenizer
from nxdi.cli.prompts import explain_tokenizer_errors
from nxdi.errors import ConfigError, NxdiError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from nxdi.config import NeuronConfig
    from nxdi.models.causal_lm import NeuronBaseForCausalLM

EXIT_DIVERGES, EXIT_BAD_REQUEST, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns: the exit code: 1 if the accuracy check fails, 2 if the request cannot be met.
    """
    args = make_parser().parse_args(argv)
    try:
        _run(args)
    except NxdiError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DIVERGES if isinstance(error, AssertionError) else EXIT_BAD_REQUEST
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _run(args: argparse.Namespace) -> None:
    _check_request(args)
    target, draft = make_models(args)
    model = target.model
    _check_model(args, model.neuron_config)
    models = [target] if draft is None else [target, draft]
    if args.compile_only:
        for each in models:
            each.compile()
        return
    # All that may be refused comes before minutes of compiling.
    tokenizer = _load_tokenizer(args, model)
    inputs = _encode(args, tokenizer)
    options = _generation_config(args, model, inputs)
    if not args.skip_compile:
        for each in models:
            each.compile()
        tokenizer.save_pretrained(args.compiled_model_path)  # where NxDI puts a copy
    for each in models:
        each.load()
    assistant = None if draft is None else draft.model
    _check_accuracy(args, model, tokenizer, options, inputs, assistant)
    _generate(model, tokenizer, options, inputs, assistant)
    if args.benchmark:
        _benchmark(args, model, options)


def _check_request(args: argparse.Namespace) -> None:
    """Refuse what would fail after minutes of compiling."""
    if args.skip_compile and args.compile_only:
        raise ConfigError("--skip-compile and --compile-only leave nothing to do; give one")
    if not args.prompts and not args.compile_only:
        raise ConfigError("no --prompt to continue; give one or more, or --compile-only")
    if args.benchmark:
        from nxdi.tools.benchmark import report_files

        report_files(args.benchmark_report_path)


def _check_model(args: argparse.Namespace, config: NeuronConfig) -> None:
    num_rows = config.tkg_batch_size
    if len(args.prompts) > num_rows:
        raise ConfigError(
            f"{len(args.prompts)} prompts do not fit batch_size={num_rows}; give fewer, or raise "
            "--batch-size"
        )
    returns_logits = config.output_logits or not config.on_device_sampling
    if args.check_accuracy_mode == "logit-matching" and not returns_logits:
        raise ConfigError(
            "--check-accuracy-mode logit-matching needs logits, and --on-device-sampling returns "
            "tokens only; add --output-logits"
        )


def _load_tokenizer(
    args: argparse.Namespace, model: NeuronBaseForCausalLM
) -> PreTrainedTokenizerBase:
    """The model's tokenizer, able to pad."""
    tokenizer = load_tokenizer(args.model_path)
    with explain_tokenizer_errors(args.model_path, "cannot pad"):
        if args.pad_token_id is not None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(args.pad_token_id)
        elif tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = model.neuron_config.padding_side
    return tokenizer


def _encode(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`input_ids` and `attention_mask` [B, S], padded if there are several prompts.

    Either side gives the same answers, and transformers warns of the right one.
    """
    with explain_tokenizer_errors(args.model_path, "fails"):
        encoded = tokenizer(
            args.prompts, padding=len(args.prompts) > 1, padding_side="left", return_tensors="pt"
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def _generation_config(
    args: argparse.Namespace, model: NeuronBaseForCausalLM, inputs: Mapping[str, Any]
) -> GenerationConfig:
    """The folder's defaults, and over them what the command line says.

    Without --max-new-tokens a text ends at the length the model is compiled for.
    Raises: BucketError if a prompt and its new tokens do not fit.
    """
    from nxdi.generation.hf_adapter import HuggingFaceGenerationAdapter
    from nxdi.tools.model_info.request import plan_request

    config, new_tokens = model.neuron_config, neuron_keywords(args).get("max_new_tokens") or None
    longest = int(inputs["attention_mask"].sum(dim=1).max())
    if config.allow_input_truncation:
        longest = min(longest, config.max_context_length)
    plan_request(model.plan, config, longest, new_tokens or 1)
    options: Any = HuggingFaceGenerationAdapter(model).generation_config
    options.update(max_new_tokens=new_tokens, max_length=config.max_length)
    options.update(**sampling_keywords(args))
    return cast("GenerationConfig", options)


def _check_accuracy(
    args: argparse.Namespace,
    model: NeuronBaseForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    options: GenerationConfig,
    inputs: Mapping[str, Any],
    draft: NeuronBaseForCausalLM | None,
) -> None:
    """Raises: LogitMatchingValidationError if the model differs from transformers."""
    if args.check_accuracy_mode == "skip-accuracy-check":
        return
    from nxdi.utils import accuracy

    num_tokens = args.num_tokens_to_check
    if args.check_accuracy_mode == "token-matching":
        print("Checking accuracy by token matching", flush=True)
        accuracy.check_accuracy(
            model,
            tokenizer,
            options,
            num_tokens_to_check=num_tokens,
            inputs=inputs,
            draft_model=draft,
        )
    else:
        print("Checking accuracy by logit matching", flush=True)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        accuracy.check_accuracy_logits_v2(
            model,
            accuracy.generate_expected_logits(model, ids, mask, options, num_tokens),
            ids,
            mask,
            options,
            args.divergence_difference_tol,
            args.tol_map,
        )
    print("The model is accurate")


def _generate(
    model: NeuronBaseForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    options: GenerationConfig,
    inputs: Mapping[str, Any],
    draft: NeuronBaseForCausalLM | None,
) -> None:
    """Print each prompt with what follows it."""
    from nxdi.generation.hf_adapter import HuggingFaceGenerationAdapter

    adapter = HuggingFaceGenerationAdapter(model)
    outputs = cast(
        "Tensor", adapter.generate(**inputs, generation_config=options, assistant_model=draft)
    )
    print("Generated outputs:")
    for row, text in enumerate(tokenizer.batch_decode(outputs, skip_special_tokens=True)):
        print(f"Output {row}: {text}")


def _benchmark(
    args: argparse.Namespace, model: NeuronBaseForCausalLM, options: GenerationConfig
) -> None:
    from nxdi.utils.benchmark import benchmark_sampling

    report = benchmark_sampling(
        model,
        generation_config=options,
        num_runs=args.num_runs,
        benchmark_report_path=args.benchmark_report_path,
    )
    print("Benchmark completed and its result is as following")
    print(json.dumps(report, indent=4))
