"""Every way to speculate, on tiny random models: one table for all tests of what is promised."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from nxdi.generation import RequestOptions
from nxdi.generation.speculation import DraftModel, EagleHead, MedusaHeads, PromptLookup
from nxdi.generation.speculation.proposals import Proposer
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from tiny_eagle import PlainHead, load_head
from tiny_medusa import TREES, fitted_heads, save_heads
from tiny_models import load_app, load_fused, near, save_tiny, tiny_hf_model

# So few that proposals of random heads are right now and then, and draws can be counted.
NUM_TOKENS = 12
NUM_HEADS = 7  # of Medusa; as many as the longest chain has proposals
_MOST_VERIFIED = NUM_HEADS + 1
_SIZES = {"vocab_size": NUM_TOKENS, "hidden_size": 32, "intermediate_size": 48}

Options = dict[str, Any]
Asked = tuple[list[int], RequestOptions]
SAMPLES: Options = {"on_device_sampling_config": {"dynamic": True}}
# What a draft has in common with its target; where the target keeps its cache is its own matter.
_SHARED = (
    "backend",
    "seq_len",
    "max_context_length",
    "enable_bucketing",
    "context_encoding_buckets",
    "token_generation_buckets",
    "batch_size",
    "tp_degree",
)


@dataclass(frozen=True)
class Folders:
    """A target, with Medusa heads beside its weights, and what else may propose tokens to it."""

    target: Path
    draft: Path
    eagle: Path
    eagle3: Path


@dataclass(frozen=True)
class Made:
    """A loaded target that verifies, and who proposes; None: the target does so by itself."""

    target: NeuronBaseForCausalLM
    proposer: Proposer | None

    @property
    def models(self) -> list[NeuronBaseForCausalLM]:
        draft = None if self.proposer is None else self.proposer.draft
        return [self.target] if draft is None else [self.target, draft]


@dataclass(frozen=True)
class Mode:
    """One way to speculate.

    variants: options that say how many tokens a step verifies, or which trees; the usual one is in
    the middle.
    """

    make: Callable[[Folders, Options], Made]
    variants: dict[str, Options]

    @property
    def usual(self) -> str:
        return list(self.variants)[len(self.variants) // 2]

    def load(self, folders: Folders, variant: str, **options: Any) -> Made:
        return self.make(folders, {**options, **self.variants[variant]})


def _draft(folders: Folders, options: Options) -> Made:
    own = _own(options, "on_device_sampling_config")
    return Made(load_app(folders.target, **options), DraftModel(load_app(folders.draft, **own)))


def _own(options: Options, *names: str) -> Options:
    """Those that a draft shares with its target."""
    return {name: options[name] for name in (*_SHARED, *names) if name in options}


def _fused(folders: Folders, options: Options) -> Made:
    return Made(load_fused(folders.target, folders.draft, **options), None)


def _lookup(folders: Folders, options: Options) -> Made:
    return Made(load_app(folders.target, **options), PromptLookup())


def _medusa(folders: Folders, options: Options) -> Made:
    heads = {"is_medusa": True, "num_medusa_heads": NUM_HEADS}
    return Made(load_app(folders.target, **heads, **options), MedusaHeads())


def _eagle(folders: Folders, options: Options) -> Made:
    is_eagle3 = options.get("is_eagle3", False)
    own = _own(options, "is_eagle3", "speculation_length", "token_tree_config")
    target = load_app(folders.target, enable_eagle_speculation=True, **options)
    head_folder = folders.eagle3 if is_eagle3 else folders.eagle
    return Made(target, EagleHead(load_head(head_folder, folders.target, **own)))


def _token_tree(paths: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """Medusa's paths of ranks as NxDI's lists of children."""
    numbers = {path: number for number, path in enumerate(sorted([(), *map(tuple, paths)]))}
    children: dict[str, list[int]] = {}
    for path, number in numbers.items():
        if path:
            children.setdefault(str(numbers[path[:-1]]), []).append(number)
    return children


_LENGTHS = range(2, _MOST_VERIFIED + 1)
_SHAPES = {name: paths for name, paths in TREES.items() if paths is not None}
_NAMES = ("step", "branching_factor", "num_inputs", "num_verification_token")
_DYNAMIC = {
    name: dict(zip(_NAMES, numbers, strict=True))
    for name, numbers in {"flat": (1, 3, 1, 3), "bushy": (2, 3, 2, 6), "deep": (4, 2, 2, 7)}.items()
}
_CHAINS: dict[str, Options] = {str(n): {"speculation_length": n} for n in _LENGTHS}
_FIXED: dict[str, Options] = {
    name: {"speculation_length": _MOST_VERIFIED, "token_tree_config": _token_tree(paths)}
    for name, paths in _SHAPES.items()
}
_GROWING: dict[str, Options] = {
    name: {"speculation_length": _MOST_VERIFIED, "token_tree_config": numbers}
    for name, numbers in _DYNAMIC.items()
}
_EAGLE3: Options = {"is_eagle3": True}
MODES = {
    "draft": Mode(_draft, _CHAINS),
    "fused": Mode(_fused, _CHAINS),
    "lookup": Mode(_lookup, _CHAINS),
    "eagle": Mode(_eagle, _CHAINS),
    "eagle3": Mode(_eagle, {name: {**_EAGLE3, **own} for name, own in _CHAINS.items()}),
    "eagle trees": Mode(_eagle, _FIXED),
    "eagle3 growing trees": Mode(
        _eagle, {name: {**_EAGLE3, **own} for name, own in _GROWING.items()}
    ),
    "medusa": Mode(_medusa, {str(n): {"medusa_speculation_length": n} for n in _LENGTHS}),
    "medusa trees": Mode(
        _medusa,
        {
            name: {"medusa_speculation_length": _MOST_VERIFIED, "medusa_tree": paths}
            for name, paths in _SHAPES.items()
        },
    ),
}


def options_of(mode: str, **options: Any) -> Options:
    """These, and what a mode needs to take sampled requests as well."""
    return {**options, **(SAMPLES if mode == "fused" else {})}


def save_folders(
    root: Path, seed: int = 0, noise: float = 0.15, temperature: float = 1, **overrides: Any
) -> Folders:
    """Random models of a few tokens; all drafts are right now and then.

    noise: how far the draft is from the target. temperature: built into the target, which so needs
    no logits processors.
    """
    model = tiny_hf_model("llama", seed, **{**_SIZES, **overrides})
    model.lm_head.weight.data /= temperature
    folders = Folders(*(root / name for name in ("target", "draft", "eagle", "eagle3")))
    save_tiny(model, folders.target)
    save_tiny(near(model, noise), folders.draft)
    sequences = _continued(model)
    save_heads(folders.target, fitted_heads(model, sequences, NUM_HEADS))
    for folder, is_eagle3 in ((folders.eagle, False), (folders.eagle3, True)):
        folder.mkdir()
        # A token or two that the head does not know.
        head = PlainHead(model, is_eagle3, num_tokens=model.config.vocab_size * 5 // 6)
        head.fit(sequences).save(folder)
    return folders


def _continued(model: PreTrainedModel) -> list[list[int]]:
    """Random prompts, and what the model makes of them."""
    generate: Any = model.generate
    ids = torch.randint(
        1, model.config.vocab_size, (8, 4), generator=torch.Generator().manual_seed(8)
    )
    found: list[list[int]] = generate(ids, max_new_tokens=36, do_sample=False).tolist()
    return found


def some_requests(seed: int, number: int, longest: int = 14) -> list[Asked]:
    """Random prompts of 1 to `longest` tokens, greedy, and every fifth sampled with a seed.

    One in ten goes on up to the end of the cache.
    """
    draw = random.Random(seed)
    made = []
    for index in range(number):
        prompt = [draw.randrange(NUM_TOKENS) for _ in range(draw.randint(1, longest))]
        new = None if draw.random() < 0.1 else draw.randint(1, 20)
        sampling: Options = {"do_sample": True, "seed": index} if index % 5 == 4 else {}
        made.append((prompt, RequestOptions(max_new_tokens=new, ignore_eos=True, **sampling)))
    return made
