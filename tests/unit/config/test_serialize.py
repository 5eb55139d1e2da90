"""Configs as JSON data: every kind of value, and files that are damaged or hostile."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nxdi.config import NeuronConfig, OnDeviceSamplingConfig
from nxdi.config.serialize import decode, encode, make_config, parse, read_text, to_json_string
from nxdi.errors import ConfigError


class Attention:
    """A class to be named in JSON."""

    class Inner:
        """A nested one."""


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        float("inf"),
        float("-inf"),
        "text",
        [1, [2, None]],
        {"a": {"b": [1]}},
        {0: "LABEL_0", 1: "LABEL_1"},
        SimpleNamespace(hidden_size=4, rope=SimpleNamespace(theta=1.0)),
        Attention,
        Attention.Inner,
        OnDeviceSamplingConfig,
    ],
)
def test_values_come_back(value: object) -> None:
    assert decode(json.loads(json.dumps(encode(value)))) == value


def test_text_is_sorted_standard_json() -> None:
    text = to_json_string({"b": float("inf"), "a": torch.bfloat16, "c": (1, 2)})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": "bfloat16",
        "b": {"__float__": "inf"},
        "c": [1, 2],
    }
    assert text.index('"a"') < text.index('"b"')


def test_private_attributes_stay_out() -> None:
    assert encode(SimpleNamespace(a=1, _b=object())) == {"__namespace__": {"a": 1}}


@pytest.mark.parametrize("value", [object(), lambda: 0, {1, 2}, torch.zeros(1), b"x"])
def test_values_without_a_json_form_are_named(value: object) -> None:
    with pytest.raises(ConfigError, match=r"config\.a\[0\]=.* cannot be saved"):
        encode({"a": [value]})


def _named(module: str, name: str) -> dict[str, str]:
    return {"__module__": module, "__name__": name}


def test_foreign_classes_are_never_imported() -> None:
    module = "xmlrpc.server"
    assert module not in sys.modules
    with pytest.raises(ConfigError, match=r"import xmlrpc\.server before reading"):
        decode(_named(module, "SimpleXMLRPCServer"))
    assert module not in sys.modules


def test_only_our_model_code_is_imported() -> None:
    assert decode(_named("nxdi.models.config", "NeuronConfig")) is NeuronConfig
    with pytest.raises(ConfigError, match=r"no module 'nxdi\.models\.absent'"):
        decode(_named("nxdi.models.absent", "X"))
    with pytest.raises(ConfigError, match=r"import nxdi\.__main__ before"):
        decode(_named("nxdi.__main__", "X"))


@pytest.mark.parametrize("name", ["dumps", "absent", "decoder.scanstring", ""])
def test_only_classes_are_found(name: str) -> None:
    with pytest.raises(ConfigError, match="json has no class"):
        decode(_named("json", name))


@pytest.mark.parametrize(
    "value",
    [
        {"__float__": "many"},
        {"__namespace__": 5},
        {"__pairs__": [[1]]},
        {"__pairs__": [[[1], 2]]},
        {"__module__": 5, "__name__": "x"},
        {"__module__": "json", "__name__": None},
    ],
)
def test_damaged_values_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="is damaged"):
        decode([value])


@pytest.mark.parametrize("text", ["", "{", '{"a": }', "[1, 2]", '"x"', "[" * 100_000])
def test_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"some\.json"):
        parse(text, "some.json")


def test_text_beyond_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"some\.json .*'a' twice"):
        parse('{"b": {"a": 1, "a": 2}}', "some.json")
    assert parse('{"a":' * 64 + "1" + "}" * 64, "some.json")
    with pytest.raises(ConfigError, match=r"some\.json .*more than 64 levels deep"):
        parse('{"a":' * 65 + "1" + "}" * 65, "some.json")
    with pytest.raises(ConfigError, match=r"some\.json holds about \d+ values, more than 500000"):
        parse('{"a": [' + "0," * 500_000 + "0]}", "some.json")


def test_only_regular_files_of_a_moderate_size_are_read(tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    file.write_text("{}" + " " * 8)
    assert read_text(file, max_size=10).strip() == "{}"
    with pytest.raises(ConfigError, match=r"some\.json is larger than 9 bytes"):
        read_text(file, max_size=9)
    (tmp_path / "link").symlink_to(file)
    assert read_text(tmp_path / "link") == read_text(file)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ConfigError, match="no regular file; check the folder"):
            read_text(tmp_path / name)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json"):
        read_text(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ConfigError, match=r"binary\.json"):
        read_text(tmp_path / "binary.json")


class PortedConfig(NeuronConfig):
    """Takes a keyword of its own, sets attributes, and one that it does not take."""

    def __init__(self, num_slots: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attn_cls = Attention
        self.num_slots = num_slots
        self.router_dtype = torch.float32
        self.style = "plain"


@dataclass(init=False, repr=False, eq=False)
class ExtendedConfig(NeuronConfig):
    num_slots: int = 2


def _through_json(config: NeuronConfig) -> Any:
    return make_config(type(config), json.loads(json.dumps(encode(config))))


def test_subclasses_come_back() -> None:
    config = PortedConfig(num_slots=7, batch_size=2)
    config.style = "fancy"
    again = _through_json(config)
    assert again == config
    assert (again.num_slots, again.style, again.router_dtype) == (7, "fancy", torch.float32)
    assert _through_json(ExtendedConfig(num_slots=5)) == ExtendedConfig(num_slots=5)


def test_an_unknown_option_in_a_file_is_refused() -> None:
    data = encode(NeuronConfig()) | {"sequence_len": 5}
    with pytest.raises(ConfigError, match="NeuronConfig has no option 'sequence_len'"):
        make_config(NeuronConfig, data)
