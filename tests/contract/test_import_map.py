"""The names that ports import: those listed as supported exist, those that do not say why."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from nxdi.absent import ABSENT, GUIDE
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.port.names import NOT_HOOKS, OWN_METHODS, SUPPORTED

NAMES = [f"{module}.{name}" for module, text in SUPPORTED.items() for name in text.split()]


def import_as_a_port_does(path: str) -> None:
    module, _, name = path.rpartition(".")
    exec(f"from nxdi{module and '.'}{module} import {name}", {})


@pytest.mark.parametrize("path", NAMES)
def test_a_supported_name_is_there(path: str) -> None:
    import_as_a_port_does(path)


@pytest.mark.parametrize("module", SUPPORTED)
def test_a_supported_module_is_there(module: str) -> None:
    importlib.import_module(f"nxdi.{module}")


@pytest.mark.parametrize("path", ABSENT)
def test_an_absent_name_says_why_and_where_to_read_on(path: str) -> None:
    with pytest.raises(ImportError) as caught:
        import_as_a_port_does(path)
    assert ABSENT[path] in str(caught.value)
    assert GUIDE in str(caught.value)


@pytest.mark.parametrize(
    "path", ["modules.moe.routing.RouterTopK", "models.model_wrapper.ModelWrapper"]
)
def test_so_does_what_is_below_it(path: str) -> None:
    with pytest.raises(ImportError, match=GUIDE):
        import_as_a_port_does(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("models.config.NueronConfig", "cannot import name 'NueronConfig'"),
        ("models.confg.NeuronConfig", "No module named 'nxdi.models.confg'"),
    ],
)
def test_a_typing_error_keeps_pythons_message(path: str, message: str) -> None:
    with pytest.raises(ImportError, match=message):
        import_as_a_port_does(path)


def test_methods_of_our_own_exist_and_methods_that_nothing_calls_do_not() -> None:
    bases = (NeuronBaseModel, NeuronBaseForCausalLM, NeuronAttentionBase)
    for name in OWN_METHODS.split():
        assert any(hasattr(base, name) for base in bases), name
    for name in NOT_HOOKS:
        assert not any(hasattr(base, name) for base in bases), name


def test_the_guide_exists() -> None:
    assert (Path(__file__).parents[2] / GUIDE).is_file()


def run(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_parallel_layers_are_reached_through_the_root() -> None:
    assert "Column" in run("import nxdi as nxd; print(nxd.parallel_layers.ColumnParallelLinear)")


def test_importing_nxdi_loads_no_more_than_the_list_of_absent_names() -> None:
    program = "import sys, nxdi; print(*(m for m in sys.modules if m.startswith('nxdi')))"
    assert set(run(program).split()) == {"nxdi", "nxdi._version", "nxdi.absent", "nxdi.errors"}
