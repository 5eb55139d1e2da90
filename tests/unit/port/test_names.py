"""What becomes of a dotted name."""

from __future__ import annotations

import pytest

from nxdi import absent
from nxdi.port.names import (
    BASE_CLASSES,
    CHANGED,
    MODULES,
    SUPPORTED,
    Status,
    resolve,
)


@pytest.mark.parametrize(
    ("path", "name", "status"),
    [
        ("", "", "supported"),
        ("models", "models", "supported"),
        ("models.config", "models.config", "supported"),
        ("models.config.NeuronConfig", "models.config.NeuronConfig", "supported"),
        ("models.config.NeuronConfig.load.x", "models.config.NeuronConfig", "supported"),
        ("utils.cpu_mode", "utils.cpu_mode", "changed"),
        ("models.config.*", "models.config.*", "changed"),
        ("models.model_wrapper", "models.model_wrapper", "missing"),
        ("models.model_wrapper.X.y", "models.model_wrapper.X.y", "missing"),
    ],
)
def test_listed(path: str, name: str, status: str) -> None:
    found, entry = resolve(path)
    assert found == name
    assert entry is not None
    assert entry.status == status
    assert entry.note or status == "supported"


@pytest.mark.parametrize("path", ["models.config.NueronConfig", "models.mine.X", "other", "a.*.b"])
def test_unlisted(path: str) -> None:
    assert resolve(path)[1] is None


def test_the_tables_do_not_contradict_each_other() -> None:
    names = {f"{module}.{name}" for module, text in SUPPORTED.items() for name in text.split()}
    assert [name for name in names | MODULES if absent.reason(name)] == []
    assert CHANGED.keys() | BASE_CLASSES <= names
    assert {resolve(name)[1].status for name in names} == {Status.SUPPORTED, Status.CHANGED}


def test_supported_names_are_sorted_and_listed_once() -> None:
    assert list(SUPPORTED) == sorted(SUPPORTED)
    assert all(text.split() == sorted(set(text.split())) for text in SUPPORTED.values())
