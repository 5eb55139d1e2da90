"""The page in headless Chromium: no request, no message on the console, nothing cut off."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from nxdi.tools.benchmark.page import render_page
from nxdi.tools.benchmark.stages import Report, RunTimes, Stage, Workload

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

RUNS = tuple(
    RunTimes(12.5 + n / 10, 1 + n / 1000, tuple(0.01 + (n + t) / 10_000 for t in range(32)))
    for n in range(20)
)
MACHINE = {"cpu": "A", "cpu features": "avx2 fma " * 20}
SIZES = [(900, 600), (400, 600)]

# Appended to a copy of the page; the page itself has no script.
PROBE = """
<script>
const box = (element) => element.getBoundingClientRect();
const cut = [...document.querySelectorAll("svg text")].filter((text) => {
  const inner = box(text), outer = box(text.ownerSVGElement);
  return inner.left < outer.left || inner.right > outer.right || inner.top < outer.top ||
    inner.bottom > outer.bottom;
}).map((text) => text.textContent);
addEventListener("load", () => { document.title = JSON.stringify({
  resources: performance.getEntriesByType("resource").map((entry) => entry.name),
  charts: [...document.querySelectorAll("svg")].map((svg) => [box(svg).width, box(svg).height]),
  cut: cut,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  style: getComputedStyle(document.querySelector("svg .bar")).fill,
}); });
</script>
"""


def page(runs: tuple[RunTimes, ...]) -> str:
    config = {"model": "some-model", "seq_len": "128"}
    work = Workload(64, 33, 2)
    return render_page(Report(tuple(Stage), work, runs, config, MACHINE, "2026-01-02T03:04:05"))


def browse(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What Chromium prints of a file, with every host name unknown."""
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"),
        *(f"--user-data-dir={file.parent / 'profile'}", "--enable-logging=stderr", *options),
        file.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def probe(text: str, size: tuple[int, int], tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "probe.html"
    file.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    window = f"--window-size={size[0]},{size[1]}"
    title = re.search(r"<title>(.*?)</title>", browse(file, window, "--dump-dom").stdout)
    assert title is not None
    found: dict[str, Any] = json.loads(unescape(title.group(1)))
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("runs", [RUNS, RUNS[:1], RUNS[:1] * 3], ids=["many", "one", "equal"])
def test_the_page_as_drawn(
    runs: tuple[RunTimes, ...], size: tuple[int, int], tmp_path: Path
) -> None:
    found = probe(page(runs), size, tmp_path)
    assert found["resources"] == []
    assert len(found["charts"]) == 4
    assert all(width > 300 and height > 100 for width, height in found["charts"])
    assert found["cut"] == []
    assert found["overflow"] <= 0
    assert found["style"] == "rgb(59, 118, 196)"


def test_the_probe_sees_faults(tmp_path: Path) -> None:
    text = page(RUNS)
    text = re.sub(r'class="unit" x="4"', 'class="unit" x="-9"', text)
    text = text.replace(
        "<h1>", '<h1 style="width: 200rem"><img src="http://absent.invalid/a.png"/>'
    )
    found = probe(text, SIZES[0], tmp_path)
    assert found["resources"] == ["http://absent.invalid/a.png"]
    assert len(found["cut"]) == 4
    assert found["overflow"] > 0


def test_nothing_is_said_on_the_console(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page(RUNS), encoding="utf-8")
    shot = tmp_path / "shot.png"
    assert "CONSOLE" not in browse(file, f"--screenshot={shot}").stderr
    assert shot.stat().st_size > 10_000
    file.write_text(page(RUNS).replace("</body>", "<script>oops()</script></body>"))
    assert "oops is not defined" in browse(file, f"--screenshot={shot}").stderr
