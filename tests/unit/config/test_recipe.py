from __future__ import annotations

from pathlib import Path

import pytest

from nxdi.config.recipe import load_recipe
from nxdi.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_options_of_a_recipe(tmp_path: Path) -> None:
    file = write(tmp_path, "model: a/b\nneuron_config:\n  seq_len: 64\n  buckets: [1, 2]\n")
    assert load_recipe(file) == {"seq_len": 64, "buckets": [1, 2]}
    assert load_recipe(str(write(tmp_path, "model: a/b\nneuron_config: {}\n"))) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it must map `model` to a name"),
        ("- seq_len", "it must map `model` to a name"),
        ("neuron_config: {seq_len: 64}", "it must map `model` to a name"),
        ("model: 5\nneuron_config: {}", "it must map `model` to a name"),
        ("model: a/b", "neuron_config=None must map option names"),
        ("model: a/b\nneuron_config: [seq_len]", "must map option names"),
        ("model: a/b\nneuron_config: {5: 64}", "must map option names"),
        ("model: a/b\nneuron_config: {}\nseq_len: 64", "has no option 'seq_len'"),
        ("model: a/b\nneuron_confg: {}", "did you mean neuron_config"),
        ("model: [", "is not valid YAML"),
        ("[" * 100_000, "is not valid YAML"),
        ("model: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_what_is_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml") as caught:
        load_recipe(write(tmp_path, text))
    assert message in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml")
