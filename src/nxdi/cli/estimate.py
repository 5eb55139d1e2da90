"""`nxdi estimate`: how fast a model would be on a target, and whether it would fit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.cli.model_options import (
    DEFAULT_SEQ_LEN,
    add_other_options,
    plan_model,
    read_recipe,
)
from nxdi.cli.numbers import within
from nxdi.cli.quantize import quantization_options
from nxdi.errors import ConfigError, NxdiError

if TYPE_CHECKING:
    from nxdi.models.causal_lm import NeuronBaseForCausalLM
    from nxdi.tools.benchmark import Workload
    from nxdi.tools.estimate import Estimate, Hardware, Speculation
    from nxdi.tools.estimate.report import Variant

_PLAIN = "none"
# Options that take several values, by the NeuronConfig option that each sets.
_LISTS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "target": ("--target", str, "device: inf2, trn1, trn2 or trn3"),
    "tp_degree": ("--tp", int, "tensor-parallel ranks (default: 1)"),
    "batch_size": ("--batch", int, "rows of a batch (default: 1)"),
    "seq_len": ("--seq-len", int, f"tokens of prompt and answer (default: {DEFAULT_SEQ_LEN})"),
    "quantization_dtype": (
        "--quantization",
        str,
        f"what weights are stored in: {_PLAIN}, int8, f8e4m3, f8e5m2, int4, f4e2m1",
    ),
    "speculation_length": ("--speculation-length", int, "tokens that one step verifies; 0: none"),
}


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "estimate",
        help="predict speed and memory on a device, from the config alone",
        description="Predict speed and memory on a device. Needs config.json only, and no device. "
        "Options marked with * take several values, separated by commas, which are compared.",
    )
    parser.add_argument(
        "model", metavar="MODEL", type=_folder_of, help="model folder, or its config.json"
    )
    group = parser.add_argument_group("what to estimate")
    for name, (flag, kind, text) in _LISTS.items():
        group.add_argument(
            flag,
            dest=name,
            type=_list_of(kind),
            required=name == "target",
            metavar="X[,X]",
            help=f"* {text}",
        )
    group.add_argument(
        "--compare",
        type=_parse_comparison,
        action="append",
        default=[],
        metavar="NAME=[X,...]",
        help="several values of any other NeuronConfig option, as JSON; may be repeated",
    )
    number = within(int, 1)
    group.add_argument("--prompt-len", type=number, metavar="N", help="tokens of each prompt")
    group.add_argument("--new-tokens", type=number, metavar="N", help="tokens to generate of each")
    group.add_argument(
        "--acceptance-length",
        type=within(float, 1),
        metavar="X",
        help="with --speculation-length: tokens that a step yields on average",
    )
    group.add_argument(
        "--draft", type=_folder_of, metavar="MODEL", help="draft model (default: prompt lookup)"
    )
    add_other_options(parser.add_argument_group("model options"))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="HTML page with charts to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Estimate every combination, and print them.

    Raises: what is wrong with the only combination, or with all of them.
    """
    combinations = list(_combinations(args))

    from nxdi.tools.estimate.report import compare, describe, render_page, to_dict

    variants = [_variant(args, keywords, shown) for keywords, shown in combinations]
    refusal = variants[0].refusal
    if refusal is not None and all(variant.estimate is None for variant in variants):
        raise refusal
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(render_page(variants), encoding="utf-8")
    if args.json:
        print(json.dumps([to_dict(variant) for variant in variants], indent=1))
    elif len(variants) > 1 or variants[0].estimate is None:
        print("\n".join(compare(variants)))
    else:
        print("\n".join([*describe(variants[0].estimate), *_suggestions(args, combinations[0][0])]))


def _combinations(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """NeuronConfig's keywords of each combination, and those of its values that vary.

    Raises: ConfigError if an option is given twice, or one that another needs is missing.
    """
    fixed = {"enable_bucketing": True, "seq_len": DEFAULT_SEQ_LEN, **read_recipe(args)}
    if args.torch_dtype is not None:
        fixed["torch_dtype"] = args.torch_dtype
    lists = {name: getattr(args, name) for name in _LISTS if getattr(args, name) is not None}
    for name, values in [*args.compare, *((name, [value]) for name, value in args.option)]:
        if name in lists:
            raise ConfigError(f"{name} is given twice; keep one")
        lists[name] = values
    if args.acceptance_length is not None and "speculation_length" not in {**fixed, **lists}:
        raise ConfigError(
            f"--acceptance-length {args.acceptance_length:g} is for steps that verify several "
            "tokens; give --speculation-length as well, or leave it out"
        )
    for values in product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        shown = {name: value for name, value in chosen.items() if len(lists[name]) > 1}
        yield {**fixed, **_keywords(chosen)}, shown


def _keywords(chosen: dict[str, Any]) -> dict[str, Any]:
    """The values of one combination as keywords for graphs on a device."""
    keywords = {"backend": "neuron", **chosen}
    stored = keywords.get("quantization_dtype")
    if stored == _PLAIN:
        del keywords["quantization_dtype"]
    elif stored is not None:
        keywords = {"quantized": True, **quantization_options(stored), **keywords}
    return keywords


def _variant(args: argparse.Namespace, keywords: dict[str, Any], shown: dict[str, Any]) -> Variant:
    """One combination; a refusal if no model can have it."""
    from nxdi.tools.estimate.report import Variant

    try:
        return Variant(shown, _estimate(args, keywords))
    except NxdiError as error:
        return Variant(shown, None, error)


def _estimate(args: argparse.Namespace, keywords: dict[str, Any]) -> Estimate:
    app = plan_model(args, keywords)

    from nxdi.tools.estimate import estimate_model

    speculation = _speculation(args, keywords)
    return estimate_model(app, _hardware(app), _workload(args, app), speculation)


def _hardware(app: NeuronBaseForCausalLM) -> Hardware:
    from nxdi.tools.estimate import find_hardware

    config = app.neuron_config
    assert config.target is not None  # the parser wants one
    return find_hardware(config.target, config.logical_nc_config, config.tp_degree)


def _workload(args: argparse.Namespace, app: NeuronBaseForCausalLM) -> Workload:
    """What the command line asks for; what it leaves open fills the sequence."""
    from nxdi.tools.benchmark import Workload
    from nxdi.tools.benchmark.sampling import default_workload

    config = app.neuron_config
    usual = default_workload(config)
    prompt_len = args.prompt_len or max(
        1, min(usual.prompt_len, config.max_length - (args.new_tokens or usual.new_tokens))
    )
    new_tokens = args.new_tokens or max(1, min(usual.new_tokens, config.max_length - prompt_len))
    return Workload(prompt_len, new_tokens, usual.num_rows)


def _speculation(args: argparse.Namespace, keywords: dict[str, Any]) -> Speculation | None:
    """Of this combination, with the decode steps of a draft model on the same ranks."""
    verified = keywords.get("speculation_length", 0)
    if not verified or args.acceptance_length is None:
        return None

    from nxdi.tools.estimate import Speculation

    seconds = 0.0
    if args.draft is not None:
        plain = {name: value for name, value in keywords.items() if not name.startswith("quantiz")}
        draft = argparse.Namespace(**{**vars(args), "model": args.draft, "architecture": None})
        found = _estimate(draft, {**plain, "speculation_length": 0})
        seconds = (verified - 1) * found.per_token.total
    return Speculation(args.acceptance_length, seconds)


def _suggestions(args: argparse.Namespace, keywords: dict[str, Any]) -> Iterator[str]:
    """Ranks for which nothing is padded and no kernel declines, if there are such."""
    app = plan_model(args, keywords)

    from nxdi.tools.estimate.kernels import suggest_degrees

    if degrees := suggest_degrees(app, _hardware(app)):
        yield f"  none of this with --tp {' or '.join(map(str, degrees))}"


def _folder_of(text: str) -> Path:
    path = Path(text)
    return path.parent if path.name == "config.json" else path


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        return [kind(item.strip()) for item in text.split(",")]

    parse.__name__ = "list"  # argparse names it when the text is none
    return parse


def _parse_comparison(text: str) -> tuple[str, list[Any]]:
    name, equals, values = text.partition("=")
    try:
        parsed = json.loads(values)
    except ValueError:
        parsed = None
    if not (name.isidentifier() and equals and isinstance(parsed, list) and parsed):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=[VALUE, ...] with JSON values")
    return name, parsed
