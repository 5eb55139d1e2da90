"""What goes wrong on the way to a device, and what each error says to do."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neuron.conftest import Artifacts, Folders, compile_elsewhere
from neuron.nxd_double import Double
from neuron.support import generate, neuron_app
from nxdi.errors import ArtifactError, ConfigError, UnsupportedError
from nxdi.runtime.backends.neuron import probe
from nxdi.runtime.backends.neuron.build import compile_graph

LOG = "\n".join([*(f"line {i}" for i in range(100)), "[NCC_EVRF009] out of memory"])


def test_a_failed_compile_shows_the_end_of_its_log(
    sdk: Double, folders: Folders, artifacts: Artifacts, tmp_path: Path
) -> None:
    app = neuron_app(folders("llama"))
    shutil.copytree(artifacts(1), tmp_path / "artifact")
    sdk.failing = LOG
    with pytest.raises(ArtifactError) as caught:
        app.compile(tmp_path / "artifact", progress=False)
    reason, *lines = str(caught.value).splitlines()
    start = "neuronx-cc failed on context_encoding_model_b2_s16: neuronx-cc exited with 70; its log"
    assert reason.startswith(start)
    assert lines[-1] == "  [NCC_EVRF009] out of memory"
    assert lines[0] == "  line 81"
    found = re.search(r"its log is (\S+), which ends with:$", reason)
    assert found is not None
    assert Path(found[1]).read_text() == LOG
    sdk.failing = ""
    app.load(tmp_path / "artifact")  # the one of before
    assert generate(app).shape == (2, 24)


def test_only_the_newest_log_is_shown(
    sdk: Double, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where BASE_COMPILE_WORK_DIR keeps those of earlier compiles."""
    monkeypatch.setenv("BASE_COMPILE_WORK_DIR", str(tmp_path))
    old = tmp_path / "context_encoding_model_b2_s16" / "2020" / "log-neuron-cc.txt"
    old.parent.mkdir(parents=True)
    old.write_text("an old complaint")
    os.utime(old, (0, 0))
    sdk.failing = "a new complaint"
    with pytest.raises(ArtifactError, match=r"a new complaint$"):
        neuron_app(folders("llama")).compile(tmp_path / "artifact", progress=False)


def test_a_compiler_that_never_starts(tmp_path: Path) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise FileNotFoundError("neuronx-cc")

    nxd = SimpleNamespace(trace=SimpleNamespace(functions=SimpleNamespace(compile=fails)))
    traced = SimpleNamespace(hlo=None, metaneff=None)
    with pytest.raises(ArtifactError, match=f"on a_graph: neuronx-cc; it wrote no .* {tmp_path}"):
        compile_graph(nxd, traced, "a_graph", tmp_path, "")


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        (
            {"neuronx-distributed": "0.19.28093"},
            "platform: built for 'trn2 lnc2, .*0.19.28093', asked for 'trn2 lnc2, .*0.18.27753'",
        ),
        ({"torch-neuronx": "2.9.0.2.14.27725"}, "platform: built for .*compile it again"),
        # Versions that the manifest does not compare, but the file of the SDK remembers.
        ({"neuronx-cc": "2.25.3371"}, r"model.pt was written by another SDK; compile again"),
    ],
)
def test_an_artefact_of_another_sdk(
    versions: dict[str, str], message: str, sdk: Double, folders: Folders, tmp_path: Path
) -> None:
    artifact = compile_elsewhere(folders("llama"), tmp_path / "artifact", versions)
    with pytest.raises(ArtifactError, match=f"(?s){message}"):
        neuron_app(folders("llama")).load(artifact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "trn1"}, "platform: built for 'trn2 lnc2, .*asked for 'trn1 lnc1, "),
        ({"logical_nc_config": 1}, "platform: built for 'trn2 lnc2, .*asked for 'trn2 lnc1, "),
        ({"tp_degree": 2}, "tp_degree: built for 1, asked for 2"),
        ({"backend": "eager"}, "backend: built for 'neuron', asked for 'eager'"),
    ],
)
def test_an_artefact_for_another_device(
    options: dict[str, Any], message: str, sdk: Double, folders: Folders, artifacts: Artifacts
) -> None:
    with pytest.raises(ArtifactError, match=f"(?s){message}"):
        neuron_app(folders("llama"), **options).load(artifacts(1))


def test_a_model_that_the_sdk_cannot_read(
    sdk: Double, folders: Folders, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("unknown opset")

    monkeypatch.setattr(sdk.package.NxDModel, "load", fails)
    with pytest.raises(ArtifactError, match="cannot be loaded: unknown opset; compile again"):
        neuron_app(folders("llama")).load(artifacts(1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "trn4"}, ConfigError, "target='trn4' .* inf2, trn1, trn2, trn3"),
        (
            {"target": "inf2", "tp_degree": 32},
            UnsupportedError,
            "32 ranks do not fit one inf2 instance, which has 24 .*lower tp_degree, or spread",
        ),
        (
            {"target": "trn2", "tp_degree": 128},
            UnsupportedError,
            r"128 ranks .* which has 64 \(logical_nc_config=2\)",
        ),
        ({"target": "trn1", "logical_nc_config": 2}, ConfigError, "config=2 on trn1: use 1"),
        ({"target": "trn2", "logical_nc_config": 4}, ConfigError, "config=4 on trn2: use 1 or 2"),
    ],
)
def test_what_a_target_does_not_have(
    options: dict[str, Any], error: type[Exception], message: str, folders: Folders
) -> None:
    with pytest.raises(error, match=message):
        neuron_app(folders("llama"), **options)


def test_more_ranks_with_one_core_each(folders: Folders) -> None:
    options = {"target": "trn2", "tp_degree": 128, "logical_nc_config": 1}
    assert neuron_app(folders("llama"), **options).num_ranks == 128


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1", "target='trn2' contradicts NEURON_PLATFORM"),
        ("NEURON_LOGICAL_NC_CONFIG", "two", "NEURON_LOGICAL_NC_CONFIG='two' must be a number"),
        ("NEURON_LOGICAL_NC_CONFIG", "3", "logical_nc_config=3 on trn2: use 1 or 2"),
    ],
)
def test_an_environment_that_contradicts(
    name: str, value: str, message: str, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        neuron_app(folders("llama"))


@pytest.mark.parametrize(
    ("options", "variables", "platform"),
    [
        ({}, {}, "trn2 lnc2"),
        ({}, {"NEURON_LOGICAL_NC_CONFIG": "1"}, "trn2 lnc1"),
        ({"logical_nc_config": 1}, {"NEURON_LOGICAL_NC_CONFIG": "2"}, "trn2 lnc2"),
        ({"target": None}, {"NEURON_PLATFORM_TARGET_OVERRIDE": "trn3"}, "trn3 lnc2"),
        ({"target": None}, {"NEURON_PLATFORM_TARGET_OVERRIDE": "inf2"}, "inf2 lnc1"),
        ({"target": "trn1"}, {"NEURON_PLATFORM_TARGET_OVERRIDE": "trn1"}, "trn1 lnc1"),
        ({"logical_neuron_cores": 1}, {}, "trn2 lnc1"),
    ],
)
def test_what_decides_the_target(
    options: dict[str, Any],
    variables: dict[str, str],
    platform: str,
    sdk: Double,
    folders: Folders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert neuron_app(folders("llama"), **options).backend.platform().startswith(platform)


def test_the_device_decides_without_a_target(
    sdk: Double, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "device_target", lambda: "trn3")
    assert neuron_app(folders("llama"), target=None).backend.platform().startswith("trn3 lnc2")


def test_a_model_too_large_for_a_rank(sdk: Double, folders: Folders, tmp_path: Path) -> None:
    """Keys and values of 2 layers, 2 heads of 16 floats, for 2048 rows of 2^20 tokens."""
    app = neuron_app(folders("llama"), batch_size=2048, seq_len=2**20, max_context_length=16)
    message = r"one rank needs 1024.0 GiB .* a rank of trn2 has 21.6 GiB .* raise tp_degree, or"
    with pytest.raises(UnsupportedError, match=message):
        app.compile(tmp_path / "artifact", progress=False)
    assert sdk.calls == []
    assert not (tmp_path / "artifact").exists()


def test_no_device_to_load_on(
    sdk: Double, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling needs none."""
    monkeypatch.setattr(probe, "neuron_devices", list)
    app = neuron_app(folders("llama"))
    app.compile(tmp_path / "artifact", progress=False)
    with pytest.raises(UnsupportedError, match=r"no Neuron device here .* trn2 on; .*cpu"):
        app.load(tmp_path / "artifact")


def test_no_device_and_no_target(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "neuron_devices", list)
    with pytest.raises(ConfigError, match="no Neuron device here to compile for; give target"):
        neuron_app(folders("llama"), target=None)


def test_no_sdk(folders: Folders, artifacts: Artifacts, tmp_path: Path) -> None:
    app, message = neuron_app(folders("llama")), "install torch-neuronx, neuronx-cc and"
    with pytest.raises(UnsupportedError, match=message):
        app.compile(tmp_path / "artifact")
    with pytest.raises(UnsupportedError, match=message):
        app.load(artifacts(1))


def test_other_weights_than_compiled_for(
    sdk: Double, folders: Folders, artifacts: Artifacts, tmp_path: Path
) -> None:
    """The artefact holds no weights, but knows which it was compiled for."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in folders("llama").glob("*.*"):
        data = bytearray(file.read_bytes())
        if file.suffix == ".safetensors":
            data[-1] ^= 1
        (folder / file.name).write_bytes(data)
    with pytest.raises(ArtifactError, match="weights_fingerprint: built for"):
        neuron_app(folder).load(artifacts(1))
