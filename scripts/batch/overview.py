"""A page with all masks of a folder, doubtful ones first, to be looked at before the numbers are used."""

from __future__ import annotations

import csv
import html
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scripts.batch.outcomes import FAILURES
from scripts.common.errors import counted, shown
from scripts.common.files import write_whole
from scripts.common.tables import read_rows
from scripts.data.find import without_postfix
from scripts.data.masks import beside
from scripts.measure.rows import SPINE_WORDS

NAME = "overview.html"
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ margin: 2rem; background: #0d0f12; color: #e8eaed; font: 15px/1.4 system-ui, sans-serif }}
a {{ color: inherit }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 38rem), 1fr)); gap: 1.5rem }}
article {{ padding: .75rem 1rem; background: #171a1f; border-top: 3px solid #3a4048 }}
article.doubtful {{ border-color: #e8b339 }}
h2 {{ margin: 0 0 .5rem; font-size: 1rem; overflow-wrap: anywhere }}
img {{ display: block; width: 100% }}
p, ul {{ margin: .5rem 0; color: #b6bcc4 }}
ul {{ padding-left: 1.2rem }}
li.failed {{ color: #ff8f80 }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{failures}
<main>
{cards}
</main>
</html>
"""


def write_overview(folder: Path, spines: Sequence[Mapping[str, Any]]) -> Path:
    """Write `overview.html`: picture, warnings and angles of every mask, and which scans have failed. It loads nothing but the pictures.

    Args:
        folder: holds the masks and perhaps `failures.csv`, and gets the page.
        spines: rows of `spines.csv`.
    """
    failures = []
    with suppress(csv.Error, OSError):  # `Outcomes` reports whatever is wrong with this table
        failures = read_rows(folder / FAILURES)
    doubtful = [row for row in spines if warnings_of(row)]
    title = f"{counted(spines, 'mask')}, {len(doubtful)} with warnings"
    title += f", {counted(failures, 'scan')} failed" if failures else ""
    tables = ", ".join(f'<a href="{_link(table.name)}">{_text(table.name)}</a>' for table in sorted(folder.glob("*.csv")))
    failed = "".join(
        f'<li class="failed">{_text(row.get("file"))}: {_text(row.get("reason"))}. {_text(row.get("fix"))}</li>\n' for row in failures
    )
    page = PAGE.format(
        title=title,
        summary=f"Masks with uncertain names come first, then others with warnings. All numbers: {tables}.",
        failures=f"<ul>\n{failed}</ul>" if failed else "",
        cards="\n".join(_card(folder, row) for row in sorted(spines, key=_rank)),
    )
    return write_whole(folder / NAME, lambda path: path.write_text(page, encoding="utf-8"))


def _rank(row: Mapping[str, Any]) -> tuple[bool, bool, str]:
    """Return what to sort masks by: uncertain names, then other warnings, then none."""
    return str(row.get("uncertain")) != "True", not warnings_of(row), str(row["mask"])


def warnings_of(row: Mapping[str, Any]) -> list[str]:
    """Return the warnings of a row of `spines.csv`, and one more if its mask was edited after its report."""
    edited = ["the mask was edited after its report: these numbers describe it as it was before"] if row.get("edited_since") else []
    return [*filter(None, str(row.get("warnings") or "").split(" | ")), *edited]


def _card(folder: Path, row: Mapping[str, Any]) -> str:
    mask, doubts = Path(str(row["mask"])), warnings_of(row)
    picture = beside(mask, ".png")
    name = _text(without_postfix(mask).as_posix())
    parts = [f"<h2>{name}</h2>"]
    if (folder / picture).is_file():
        link = _link(picture.as_posix())
        parts.append(f'<a href="{link}"><img src="{link}" loading="lazy" alt="{name} with the outlines of its mask"></a>')
    if doubts:
        parts.append("<ul>" + "".join(f"<li>{_text(line)}</li>" for line in doubts) + "</ul>")
    if row.get("named_by_hand"):
        parts.append("<p>levels named by hand</p>")
    angles = [f"{word} {angle:.0f}°" for key, word in SPINE_WORDS.items() if (angle := _number(row.get(key))) is not None]
    if angles:
        parts.append(f"<p>{', '.join(angles)}</p>")
    kind = ' class="doubtful"' if doubts else ""
    return f"<article{kind}>{''.join(parts)}</article>"


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):  # the cell is missing, or a report was edited
        return None


def _link(path: str) -> str:
    return quote(os.fsencode(path))


def _text(value: object) -> str:
    return html.escape(shown(value))
