"""The options that say which model to run and how, common to all subcommands that load one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.cli.prompts import explain_tokenizer_errors
from nxdi.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nxdi.models.causal_lm import NeuronBaseForCausalLM

DEFAULT_SEQ_LEN = 1024  # tokens


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and every option that reaches `NeuronConfig`."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="local Hugging Face model folder")
    group = parser.add_argument_group("model options")
    group.add_argument(
        "--seq-len",
        type=int,
        metavar="N",
        help=f"tokens of prompt and answer together (default: {DEFAULT_SEQ_LEN})",
    )
    group.add_argument("--max-context-length", type=int, metavar="N", help="longest prompt, tokens")
    group.add_argument("--batch-size", type=int, metavar="N", help="rows of a batch (default: 1)")
    group.add_argument("--tp-degree", type=int, metavar="N", help="tensor-parallel ranks")
    group.add_argument("--backend", metavar="NAME", help="where it runs (default: auto)")
    add_other_options(group)


def add_other_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say nothing of lengths, batches, ranks and the backend."""
    group.add_argument("--dtype", dest="torch_dtype", metavar="NAME", help="dtype of the weights")
    group.add_argument(
        "--architecture",
        metavar="NAME",
        help="what serves the model, if not what its config.json names: `generic` for Llama's "
        "layout under an unknown name",
    )
    group.add_argument(
        "--option",
        type=_parse_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other NeuronConfig option; VALUE is JSON or plain text; may be repeated",
    )
    group.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="YAML file with NeuronConfig options, such as those in recipes/; options on the "
        "command line win over it",
    )


def add_artifact_option(parser: argparse.ArgumentParser) -> None:
    """Add the folder to load compiled graphs from."""
    parser.add_argument(
        "--artifact-dir",
        type=Path,
        metavar="DIR",
        help="folder `nxdi compile` wrote (default: the cache; graphs are compiled if absent)",
    )


def config_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """The NeuronConfig keywords of a command line and its recipe, whose options give way.

    Graphs are bucketed unless either says otherwise.
    Raises: ConfigError if one is set twice, or the recipe cannot be read.
    """
    names = ("seq_len", "max_context_length", "batch_size", "tp_degree", "torch_dtype", "backend")
    keywords = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    for name, value in args.option:
        own = "dtype" if name == "torch_dtype" else name.replace("_", "-")
        if name in names:
            raise ConfigError(f"--option {name} has an option of its own; use --{own}")
        if name in keywords:
            raise ConfigError(f"--option {name} is given twice; keep one")
        keywords[name] = value
    return {"enable_bucketing": True, "seq_len": DEFAULT_SEQ_LEN, **read_recipe(args), **keywords}


def plan_model(
    args: argparse.Namespace, keywords: dict[str, Any] | None = None
) -> NeuronBaseForCausalLM:
    """The model of a command line, neither compiled nor loaded.

    keywords: of NeuronConfig (default: those of the command line).
    Raises: ConfigError if there is no such model folder or an option is wrong.
    """
    check_model_folder(args.model)
    keywords = config_keywords(args) if keywords is None else keywords

    from nxdi.models.auto import make_model

    return make_model(args.model, keywords, architecture=args.architecture)


def load_model(
    args: argparse.Namespace, keywords: dict[str, Any] | None = None
) -> NeuronBaseForCausalLM:
    """Compile the model or find its graphs in `--artifact-dir` or the cache, and load it.

    keywords: of `AutoModelForCausalLM.from_pretrained` (default: those of the command line).
    Raises: ConfigError if there is no such model folder; whatever compiling and loading raise.
    """
    check_model_folder(args.model)
    keywords = config_keywords(args) if keywords is None else keywords

    from nxdi.models.auto import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        args.model, architecture=args.architecture, artifact_dir=args.artifact_dir, **keywords
    )


def check_model_folder(folder: Path) -> None:
    """Raises: ConfigError unless `folder` is a Hugging Face model folder."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is no model folder: it has no config.json; give a local one")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; code in the folder is never run.

    Raises: ConfigError if there is none that can be loaded.
    """
    check_model_folder(folder)

    from transformers import AutoTokenizer

    from nxdi.cli.tokenizer_files import check_tokenizer_files
    from nxdi.config.from_hf import check_config_file

    check_config_file(folder / "config.json")  # a tokenizer may take its class from there
    check_tokenizer_files(folder)
    with explain_tokenizer_errors(folder, "cannot be loaded"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        return tokenizer


def read_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """The NeuronConfig keywords of the recipe on a command line, if there is one."""
    if args.recipe is None:
        return {}

    from nxdi.config.recipe import load_recipe

    return load_recipe(args.recipe)


def _parse_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
