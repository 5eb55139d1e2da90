"""The options of `inference_demo`: NxDI's names, made from the fields of NeuronConfig.

NeuronConfig itself says of each option whether it is supported, has no effect, or is refused.
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.cli.numbers import within

if TYPE_CHECKING:
    from nxdi.config.keywords import KeywordConfig

ACCURACY_MODES = ("skip-accuracy-check", "token-matching", "logit-matching")
# Where NxDI's demo has another name than its NeuronConfig.
_OTHER_NAMES = {
    "is_block_kv_layout": "enable_block_kv_layout",
    "is_prefix_caching": "enable_prefix_caching",
}
_NUMBERS: dict[str, Any] = {"int": int, "float": float}
_CONFIG, _SAMPLING = "config.", "sampling."  # prefixes of where argparse puts what it reads


def make_parser() -> argparse.ArgumentParser:
    """The parser of `inference_demo --model-type T --task-type causal-lm run ...`."""
    parser = argparse.ArgumentParser(
        prog="inference_demo",
        description="Compile and run a model with the options of NxDI's inference_demo.",
        allow_abbrev=False,
    )
    parser.add_argument("--model-type", required=True, metavar="TYPE", help="as in config.json")
    parser.add_argument("--task-type", required=True, choices=("causal-lm",))
    commands = parser.add_subparsers(metavar="run", required=True)
    run = commands.add_parser("run", help="compile, load and generate", allow_abbrev=False)
    _add_own_options(run)
    _add_config_options(run)
    return parser


def neuron_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of NeuronConfig that a command line gives."""
    keywords = _given(args, _CONFIG)
    if args.on_device_sampling:
        keywords["on_device_sampling_config"] = _given(args, _SAMPLING)
    return keywords


def sampling_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of transformers' GenerationConfig that a command line gives.

    Raises: ConfigError for one out of range.
    """
    from nxdi.config import OnDeviceSamplingConfig

    given = _given(args, _SAMPLING)
    OnDeviceSamplingConfig(**given)  # checks the values, wherever tokens are sampled
    names = ("top_k", "top_p", "temperature")
    keywords: dict[str, Any] = {name: given[name] for name in names if name in given}
    if keywords.get("top_k") == -1:
        keywords["top_k"] = 0  # transformers' word for no limit
    if args.pad_token_id is not None:
        keywords["pad_token_id"] = args.pad_token_id
    do_sample = given.get("do_sample", False) and keywords.get("temperature") != 0
    return {"do_sample": do_sample, **keywords}


def _given(args: argparse.Namespace, prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in vars(args).items()
        if name.startswith(prefix)
    }


def _add_own_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("--model-path", type=Path, required=True, metavar="DIR")
    run.add_argument("--compiled-model-path", type=Path, required=True, metavar="DIR")
    run.add_argument("--prompt", dest="prompts", action="append", default=[], metavar="TEXT")
    run.add_argument("--pad-token-id", type=int, metavar="ID")
    run.add_argument("--on-device-sampling", action="store_true")
    run.add_argument("--compile-only", action="store_true")
    run.add_argument("--skip-compile", action="store_true", help="load what was compiled before")
    draft = run.add_argument_group("speculation, with the options of NeuronConfig")
    draft.add_argument(
        "--draft-model-path",
        type=Path,
        metavar="DIR",
        help="folder of a draft model, or with --enable-eagle-speculation of an EAGLE head; it is "
        "in the model's graphs with --enable-fused-speculation",
    )
    draft.add_argument(
        "--compiled-draft-model-path",
        type=Path,
        metavar="DIR",
        help="where its graphs go, without --enable-fused-speculation",
    )
    draft.add_argument("--draft-model-tp-degree", type=within(int, 1), metavar="N")
    for name, field in (("medusa", "medusa_tree"), ("token", "token_tree_config")):
        draft.add_argument(
            f"--{name}-tree-json",
            dest=_CONFIG + field,
            type=_read_json,
            default=argparse.SUPPRESS,
            metavar="FILE",
        )
    check = run.add_argument_group("accuracy")
    check.add_argument("--check-accuracy-mode", choices=ACCURACY_MODES, default=ACCURACY_MODES[0])
    check.add_argument("--num-tokens-to-check", type=within(int, 1), metavar="N")
    check.add_argument(
        "--divergence-difference-tol", type=within(float, 0), default=0.001, metavar="X"
    )
    check.add_argument("--tol-map", type=_parse_tol_map, metavar="{K: (ATOL, RTOL)}")
    bench = run.add_argument_group("benchmark")
    bench.add_argument("--benchmark", action="store_true")
    bench.add_argument("--num-runs", type=within(int, 1), default=20, metavar="N")
    bench.add_argument(
        "--benchmark-report-path",
        type=Path,
        default=Path("benchmark_report.json"),
        metavar="FILE",
    )


def _add_config_options(run: argparse.ArgumentParser) -> None:
    from nxdi.config import MoENeuronConfig, OnDeviceSamplingConfig

    # It has all the options of a NeuronConfig, which refuses those that only experts have.
    _add_fields(run.add_argument_group("NeuronConfig"), MoENeuronConfig, _CONFIG)
    _add_fields(run.add_argument_group("sampling"), OnDeviceSamplingConfig, _SAMPLING)


def _add_fields(group: Any, config_cls: type[KeywordConfig], prefix: str) -> None:
    """One option for each field; one that is not given leaves no trace."""
    from dataclasses import fields

    for field in fields(config_cls):
        if field.name == "on_device_sampling_config":  # made from options of its own
            continue
        name = _OTHER_NAMES.get(field.name, field.name)
        spellings = dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"])
        kind = str(field.type).partition(" | ")[0]
        group.add_argument(
            *spellings, dest=prefix + field.name, default=argparse.SUPPRESS, **_form(kind)
        )


def _form(kind: str) -> dict[str, Any]:
    """How argparse reads a field of type `kind`."""
    if kind == "bool":
        return {"action": argparse.BooleanOptionalAction}
    if kind.startswith("list["):
        return {"nargs": "+", "type": _NUMBERS.get(kind[5:-1], str), "metavar": "VALUE"}
    if kind in _NUMBERS:
        return {"type": _NUMBERS[kind], "metavar": "N" if kind == "int" else "X"}
    return {"type": _parse_json if kind == "Any" else str, "metavar": "VALUE"}


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_json(file: str) -> Any:
    try:
        return json.loads(Path(file).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{file} cannot be read: {error}") from error


def _parse_tol_map(text: str) -> dict[int | None, tuple[float, float]]:
    """`{5: (1e-5, 0.01), None: (1e-5, 0.05)}`: absolute and relative tolerance of the top K."""
    try:
        tolerances = ast.literal_eval(text)
        made = {key: (float(atol), float(rtol)) for key, (atol, rtol) in tolerances.items()}
    except (ValueError, SyntaxError, TypeError, AttributeError):
        made = {}
    if not made or not all(key is None or (type(key) is int and key > 0) for key in made):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a mapping such as {{5: (1e-5, 0.01), None: (1e-5, 0.05)}}"
        )
    return made
