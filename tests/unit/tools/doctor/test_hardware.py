from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from nxdi.tools.doctor import hardware
from nxdi.tools.doctor.findings import Verdict


def test_the_machine_here() -> None:
    section = hardware.hardware_section()
    assert section.is_healthy
    names = ["CPU", "threads", "memory", "cache folder", "backend auto"]
    assert [finding.name for finding in section.findings] == names


@pytest.mark.parametrize(("threads", "verdict"), [(4, Verdict.OK), (5, Verdict.WARNING)])
def test_more_threads_than_cores(
    threads: int, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "num_cores", lambda: 4)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    finding = hardware.check_threads()
    assert (finding.verdict, finding.found) == (verdict, f"{threads} on 4 cores")


def test_a_cache_folder_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NXDI_CACHE_DIR", str(tmp_path / "file" / "cache"))
    finding = hardware.check_cache_folder()
    assert finding.verdict is Verdict.FAILED
    assert "NXDI_CACHE_DIR" in finding.remedy


@pytest.mark.parametrize(("free", "verdict"), [(10**12, Verdict.OK), (10**6, Verdict.WARNING)])
def test_space_in_the_cache_folder(
    free: int, verdict: Verdict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NXDI_CACHE_DIR", str(tmp_path / "new" / "cache"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    assert hardware.check_cache_folder().verdict is verdict
    assert list((tmp_path / "new" / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("devices", "problem", "name", "verdict", "words"),
    [
        ([], "no SDK", "cpu", Verdict.NOTE, "no Neuron device"),
        ([Path("/dev/neuron0")], "no SDK", "cpu", Verdict.WARNING, "but no SDK"),
        ([Path("/dev/neuron0")], None, "neuron", Verdict.NOTE, "1 Neuron devices"),
    ],
)
def test_the_backend_of_auto(
    devices: list[Path],
    problem: str | None,
    name: str,
    verdict: Verdict,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "resolve_backend", lambda asked: name)
    monkeypatch.setattr(hardware.probe, "neuron_devices", lambda: devices)
    monkeypatch.setattr(hardware.probe, "sdk_problem", lambda: problem)
    finding = hardware.check_backend()
    assert finding.verdict is verdict
    assert finding.found.startswith(name)
    assert words in finding.found
