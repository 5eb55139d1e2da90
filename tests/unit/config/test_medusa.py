"""How many residual blocks the heads of a folder have."""

from __future__ import annotations

from pathlib import Path

import pytest

from nxdi.config import NeuronConfig
from nxdi.config.inference import InferenceConfig
from nxdi.config.medusa import num_blocks
from nxdi.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", 1),
        ('{"medusa_num_layers": 3, "medusa_num_heads": 5}', 3),
        ('{"num_hidden_layers": 2, "model_type": "medusa"}', 2),
        ('{"medusa_num_layers": null}', 1),
    ],
)
def test_what_a_folder_says(text: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert num_blocks(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"medusa_num_layers": "2"}', "must be an integer from 0 to 512"),
        ('{"num_hidden_layers": 100000}', "must be an integer from 1 to 512"),
        ("[]", "not an object"),
        (None, "cannot read"),
    ],
)
def test_what_is_refused(text: str | None, reason: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        num_blocks(tmp_path)


def test_a_saved_config_knows_it_without_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"medusa_num_layers": 2}')
    neuron = NeuronConfig(
        is_medusa=True,
        num_medusa_heads=1,
        medusa_speculation_length=2,
        medusa_heads_path=str(tmp_path),
    )
    config = InferenceConfig(neuron)
    assert config.medusa_num_layers == 2
    file.unlink()
    assert InferenceConfig.from_json_string(config.to_json_string()) == config
    assert InferenceConfig(NeuronConfig()).medusa_num_layers == 1
