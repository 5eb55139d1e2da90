"""The models of an `inference_demo` command line: one, or a draft model beside it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.cli.demo_options import neuron_keywords
from nxdi.cli.model_options import check_model_folder
from nxdi.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from nxdi.models.causal_lm import NeuronBaseForCausalLM

# Options that need somebody who proposes; Medusa heads are the model's own.
_NEED_A_DRAFT = ("speculation_length", "enable_fused_speculation", "enable_eagle_speculation")


@dataclass(frozen=True)
class DemoModel:
    """A model, and where its graphs go; name: as it is called in what is printed."""

    name: str
    model: NeuronBaseForCausalLM
    path: Path

    def compile(self) -> None:
        print(f"Compiling and saving {self.name}...", flush=True)
        self.model.compile(self.path)

    def load(self) -> None:
        print(f"Loading {self.name}...", flush=True)
        self.model.load(self.path)


def make_models(args: argparse.Namespace) -> tuple[DemoModel, DemoModel | None]:
    """The model, and the draft model or EAGLE head if there is one beside it; none is compiled.

    Raises: ConfigError if the folder holds another type of model than --model-type says, the
    options contradict themselves, or the draft model does not fit; UnsupportedError for a benchmark
    of two models.
    """
    check_model_folder(args.model_path)
    _check_type(args)
    keywords = neuron_keywords(args)
    _check_draft(args, keywords)

    from nxdi.generation.speculation import Speculation
    from nxdi.generation.speculation.generate import make_draft
    from nxdi.models.auto import make_model

    if args.draft_model_path is None:
        return _target(args, make_model(args.model_path, keywords)), None
    if keywords.get("enable_fused_speculation"):
        fused = make_model(
            args.model_path,
            keywords,
            draft_model_path=args.draft_model_path,
            draft_model_tp_degree=args.draft_model_tp_degree,
        )
        return _target(args, fused), None
    of_target, own = _beside(args, keywords)
    model = make_model(args.model_path, of_target)
    path = args.model_path if own.get("is_eagle_draft") else None
    draft = make_model(args.draft_model_path, own, target_model_path=path)
    Speculation(model, make_draft(draft))  # checks that they fit
    return _target(args, model), DemoModel("draft model", draft, args.compiled_draft_model_path)


def _target(args: argparse.Namespace, model: NeuronBaseForCausalLM) -> DemoModel:
    return DemoModel("model", model, args.compiled_model_path)


def _beside(
    args: argparse.Namespace, keywords: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of the model, and those of its draft model."""
    from nxdi.models.draft_folder import draft_keywords

    own = draft_keywords(keywords)
    if args.draft_model_tp_degree is not None:
        own["tp_degree"] = args.draft_model_tp_degree
    of_head = {"enable_eagle_draft_input_norm"}
    return {name: value for name, value in keywords.items() if name not in of_head}, own


def _check_type(args: argparse.Namespace) -> None:
    from nxdi.config import serialize
    from nxdi.config.limits import shown

    file = args.model_path / "config.json"
    found = serialize.read_object(file).get("model_type")
    if str(found).replace("-", "_") != args.model_type.replace("-", "_"):
        raise ConfigError(
            f"{file} has model_type={shown(found)}, not {args.model_type!r}; correct --model-type"
        )


def _check_draft(args: argparse.Namespace, keywords: dict[str, Any]) -> None:
    if args.draft_model_path is None:
        of_args = ("compiled_draft_model_path", "draft_model_tp_degree")
        given = [name for name in _NEED_A_DRAFT if keywords.get(name)]
        given += [name for name in of_args if getattr(args, name) is not None]
        if given:
            raise ConfigError(
                f"--{given[0].replace('_', '-')} is for what a draft model or EAGLE head proposes; "
                "give --draft-model-path"
            )
        return
    check_model_folder(args.draft_model_path)
    length = keywords.get("speculation_length", 0)
    if length < 2:
        raise ConfigError(
            f"--draft-model-path with --speculation-length {length} proposes nothing; make it 2 or "
            "more (5, say): each row's last token and those proposed"
        )
    _check_kind(args, keywords)
    if not keywords.get("enable_fused_speculation"):
        _check_beside(args)
    elif args.compiled_draft_model_path is not None:
        raise ConfigError(
            f"--compiled-draft-model-path {args.compiled_draft_model_path} would stay empty: with "
            "--enable-fused-speculation the draft model is in the target's graphs; leave it out"
        )


def _check_kind(args: argparse.Namespace, keywords: dict[str, Any]) -> None:
    """Refuse a head that is not announced as what it is, and a draft model that is as a head."""
    from nxdi.models.draft_folder import eagle_options

    found = eagle_options(args.draft_model_path)
    is_eagle3 = found.get("is_eagle3", False)
    asked = bool(keywords.get("enable_eagle_speculation")), bool(keywords.get("is_eagle3"))
    if asked != (bool(found), is_eagle3):
        what = ("an EAGLE-3 head" if is_eagle3 else "an EAGLE head") if found else "a draft model"
        first, second = ("with" if is_right else "without" for is_right in (bool(found), is_eagle3))
        raise ConfigError(
            f"{args.draft_model_path} holds {what}; run {first} --enable-eagle-speculation and "
            f"{second} --is-eagle3"
        )


def _check_beside(args: argparse.Namespace) -> None:
    if args.compiled_draft_model_path in (None, args.compiled_model_path):
        raise ConfigError(
            "a draft model beside its target has graphs of its own; give "
            "--compiled-draft-model-path, a folder for them, or --enable-fused-speculation"
        )
    if args.benchmark:
        raise UnsupportedError(
            "--benchmark measures one model on random prompts, which nobody can foresee; use "
            "`nxdi bench MODEL --speculation DRAFT`"
        )
