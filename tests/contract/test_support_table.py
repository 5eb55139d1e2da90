"""README's table of supported models is the one that the golden tests stand behind."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_models
from golden import support_table, table
from nxdi.models.registry import ARCHITECTURES


def test_readme_holds_the_table() -> None:
    readme = support_table.README.read_text(encoding="utf-8")
    assert support_table.put_into(readme) == readme, (
        "write it anew: PYTHONPATH=tests python -m golden.support_table --write"
    )


def test_every_architecture_has_a_row() -> None:
    families = {path.split(".")[2] for path in ARCHITECTURES.values()}  # nxdi.models.<family>
    assert set(table.FAMILIES) == families == set(tiny_models.FAMILIES)
    assert {variant.family for variant in table.VARIANTS} == families


def test_names_are_unique() -> None:
    assert len(table.BY_NAME) == len(table.VARIANTS)


def test_the_table_follows_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    before = support_table.make_table().splitlines()
    monkeypatch.setattr(table, "CPU", (("llama", 1),))
    monkeypatch.setattr(table, "CPU_SLOW", ())
    monkeypatch.setattr(table, "LONG", ("mistral",))
    after = support_table.make_table().splitlines()
    assert [line.count("| no |") for line in before[2:5]] == [0, 0, 0]
    assert [line.count("| no |") for line in after[2:5]] == [1, 1, 2]


def test_text_around_the_table_stays() -> None:
    old = f"before\n{support_table.BEGIN}\nold\n{support_table.END}\nafter\n"
    new = support_table.put_into(old)
    assert new.startswith(f"before\n{support_table.BEGIN}\n| model |")
    assert new.endswith(f"|\n{support_table.END}\nafter\n")


def test_it_is_printed_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{support_table.BEGIN}\n{support_table.END}\n")
    monkeypatch.setattr(support_table, "README", readme)
    monkeypatch.setattr("sys.argv", ["support_table"])
    support_table.main()
    shown = capsys.readouterr().out
    assert shown == support_table.make_table() + "\n"
    monkeypatch.setattr("sys.argv", ["support_table", "--write"])
    support_table.main()
    assert shown in readme.read_text()
