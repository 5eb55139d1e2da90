from __future__ import annotations

import pytest

from nxdi.runtime.progress import Progress


def test_shows_what_is_done(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress("compile", show=True) as bar:
        bar.report(0, 2, "first")
        bar.report(1, 2, "second")
        bar.report(2, 2, "package")
    shown = capfd.readouterr().err
    assert "compile" in shown
    assert "1/2" in shown
    assert "second" in shown
    assert "2/2" in shown


@pytest.mark.parametrize("show", [False, None])
def test_silent_when_told_or_when_nobody_watches(
    capfd: pytest.CaptureFixture[str], show: bool | None
) -> None:
    with Progress("compile", show) as bar:
        bar.report(1, 2, "first")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_ends_its_line_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    bar = Progress("compile", show=True)
    bar.report(1, 2, "first")
    with pytest.raises(ZeroDivisionError), bar:
        _ = 1 // 0
    assert capfd.readouterr().err.endswith("\n")
