"""A damaged model folder opens, or is refused by one of our errors; nothing else happens."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from mutations import Mutator, flip, in_header, splice, swap_values, truncate
from nxdi.errors import NxdiError
from untrusted import open_model, open_tokenizer, within_limits, write_folder

NUM_SEEDS, NUM_QUICK = 20_000, 1_000
FILES = (
    *("config.json", "config.json", "model.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json"),
)
MUTATORS: tuple[Mutator, ...] = (flip, truncate, splice, swap_values, swap_values, swap_values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound folder, and beside it one with an index."""
    root = tmp_path_factory.mktemp("models")
    write_folder(root / "model")
    indexed = shutil.copytree(root / "model", root / "indexed")
    names = {"model.norm.weight": "part.safetensors", "lm_head.weight": "part.safetensors"}
    (indexed / "model.safetensors").rename(indexed / "part.safetensors")
    content = json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
    (indexed / "model.safetensors.index.json").write_text(content)
    for each in (root / "model", indexed):
        open_model(each)
        open_tokenizer(each)
    return root / "model"


def outcome(folder: Path, seed: int) -> str:
    """What becomes of the folder with the damage of one seed: the name of an error, or "opens"."""
    random = Random(seed)
    name, mutate = random.choice(FILES), random.choice(MUTATORS)
    folder = folder.parent / "indexed" if name.endswith("index.json") else folder
    file = folder / name
    sound = file.read_bytes()
    file.write_bytes((in_header(mutate) if name == "model.safetensors" else mutate)(random, sound))
    try:
        with within_limits(folder):
            if not name.startswith("tokenizer"):
                open_model(folder)
            if not name.startswith("model"):
                open_tokenizer(folder)
    except NxdiError as error:
        return type(error).__name__
    finally:
        file.write_bytes(sound)
    return "opens"


def outcomes(folder: Path, seeds: range) -> Counter[str]:
    found: Counter[str] = Counter()
    for seed in seeds:
        try:
            found[outcome(folder, seed)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed} ends in {type(error).__name__}") from error
    return found


def test_damage_is_refused_by_name(folder: Path) -> None:
    found = outcomes(folder, range(NUM_QUICK))
    assert found.keys() >= {"opens", "ConfigError", "WeightError", "UnsupportedError"}


@pytest.mark.slow
@pytest.mark.parametrize("start", range(NUM_QUICK, NUM_SEEDS, NUM_QUICK))
def test_much_damage_is_refused_by_name(folder: Path, start: int) -> None:
    assert outcomes(folder, range(start, start + NUM_QUICK)).total() == NUM_QUICK


def test_the_same_seed_does_the_same_damage() -> None:
    data = json.dumps({"a": [1, {"b": 2}], "c": "d"}).encode()
    for mutate in {*MUTATORS, in_header(flip)}:
        sound = b"\x02" + bytes(7) + b"{}" + data if mutate not in MUTATORS else data
        assert mutate(Random(3), sound) == mutate(Random(3), sound) != sound
