"""README's table of supported models, made from what the golden tests run.

`PYTHONPATH=tests python -m golden.support_table` prints it, and `--write` puts it into README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

from golden import table

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- support-table:begin -->", "<!-- support-table:end -->"


def make_table() -> str:
    """The table in Markdown."""
    everything = [variant.name for variant in table.VARIANTS]
    columns = {
        "`eager`": _yes_for(everything),
        "`cpu`": _yes_for([name for name, _ in (*table.CPU, *table.CPU_SLOW)]),
        "tensor parallel in one process": _tp_degrees(),
        "tensor parallel under torchrun": {
            family: "2" if yes == "yes" else yes for family, yes in _yes_for(table.TORCHRUN).items()
        },
        "bucket edges": _yes_for(everything),
        "padding left and right": _yes_for(everything),
        "past position 512": _yes_for(table.LONG),
        "tested with": _shown(),
    }
    rows = [["model", *columns], ["---"] * (len(columns) + 1)]
    for family, title in table.FAMILIES.items():
        rows.append([title, *(cells[family] for cells in columns.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _yes_for(names: Collection[str]) -> dict[str, str]:
    tested = {table.BY_NAME[name].family for name in names}
    return {family: "yes" if family in tested else "no" for family in table.FAMILIES}


def _tp_degrees() -> dict[str, str]:
    wide = [(table.BY_NAME[name].family, tp) for name, tp in table.WIDE]
    return {
        family: ", ".join(
            map(str, sorted({*table.TP_DEGREES, *(tp for f, tp in wide if f == family)}))
        )
        for family in table.FAMILIES
    }


def _shown() -> dict[str, str]:
    return {
        family: ", ".join(v.shows for v in table.VARIANTS if v.family == family and v.shows)
        for family in table.FAMILIES
    }


def put_into(text: str) -> str:
    """`text` with the table between its two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{make_table()}\n{END}{after}"


def main() -> None:
    """Print the table, or with `--write` put it into README.md."""
    if "--write" in sys.argv[1:]:
        README.write_text(put_into(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(make_table())


if __name__ == "__main__":
    main()
