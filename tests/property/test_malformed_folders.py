"""A damaged model folder opens and answers, or is refused by one of our errors; nothing else."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch

from mutations import Mutator, flip, in_header, splice, swap_values, truncate
from nxdi.errors import NxdiError
from tiny_models import FAMILIES, save_tiny, tiny_hf_model
from untrusted import open_model, open_tokenizer, within_limits, write_folder

NUM_SEEDS, NUM_QUICK, NUM_SLOW = 20_000, 400, 1_400
# Llama's folder, one with an index, and the config of any family.
FILES = (
    *("model/config.json", "model/model.safetensors", "indexed/model.safetensors.index.json"),
    *("model/tokenizer.json", "model/tokenizer_config.json"),
    *("config.json", "config.json"),
)
MUTATORS: tuple[Mutator, ...] = (flip, truncate, splice, swap_values, swap_values, swap_values)
SHAPE = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 24}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound folder, one with an index, and one of each family."""
    root = tmp_path_factory.mktemp("models")
    write_folder(root / "model")
    indexed = shutil.copytree(root / "model", root / "indexed")
    names = {"model.norm.weight": "part.safetensors", "lm_head.weight": "part.safetensors"}
    (indexed / "model.safetensors").rename(indexed / "part.safetensors")
    content = json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
    (indexed / "model.safetensors.index.json").write_text(content)
    for family in FAMILIES:
        save_tiny(tiny_hf_model(family, **SHAPE, max_position_embeddings=64), root / family)
    for folder in list(root.iterdir()):
        answer(folder)
    open_tokenizer(root / "model")
    return root


def answer(folder: Path) -> None:
    """Open the model, load it, and run a prompt and one token after it."""
    app, artifact = open_model(folder), folder.parent / "artifact" / folder.name
    try:
        app.compile(artifact, progress=False)
        app.load(artifact)
        app(torch.arange(1, 6)[None])
        app(torch.tensor([[3]]), position_ids=torch.tensor([[5]]))
    finally:
        shutil.rmtree(artifact.parent, ignore_errors=True)


def outcome(root: Path, seed: int) -> str:
    """What becomes of a folder with the damage of one seed: the name of an error, or "opens"."""
    random = Random(seed)
    name, mutate = random.choice(FILES), random.choice(MUTATORS)
    file = root / (name if "/" in name else f"{random.choice(FAMILIES)}/{name}")
    sound = file.read_bytes()
    file.write_bytes((in_header(mutate) if name.endswith("safetensors") else mutate)(random, sound))
    try:
        with within_limits(file.parent):
            if "tokenizer" not in name:
                answer(file.parent)
            if "model/" in name and "safetensors" not in name:
                open_tokenizer(file.parent)
    except NxdiError as error:
        return type(error).__name__
    finally:
        file.write_bytes(sound)
    return "opens"


def outcomes(root: Path, seeds: range) -> Counter[str]:
    found: Counter[str] = Counter()
    for seed in seeds:
        try:
            found[outcome(root, seed)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed} ends in {type(error).__name__}") from error
    return found


def test_damage_is_refused_by_name(root: Path) -> None:
    found = outcomes(root, range(NUM_QUICK))
    assert found.keys() >= {"opens", "ConfigError", "WeightError"}


@pytest.mark.slow
@pytest.mark.parametrize("start", range(NUM_QUICK, NUM_SEEDS, NUM_SLOW))
def test_much_damage_is_refused_by_name(root: Path, start: int) -> None:
    assert outcomes(root, range(start, start + NUM_SLOW)).total() == NUM_SLOW


def test_the_same_seed_does_the_same_damage() -> None:
    data = json.dumps({"a": [1, {"b": 2}], "c": "d"}).encode()
    for mutate in {*MUTATORS, in_header(flip)}:
        sound = b"\x02" + bytes(7) + b"{}" + data if mutate not in MUTATORS else data
        assert mutate(Random(3), sound) == mutate(Random(3), sound) != sound
