"""Tables, as text and as files."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

from scripts.common.errors import UserError


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Rows of text as aligned columns; the columns numbered in `left` are flush left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in rows
    )


def write_rows(rows: list[dict], path: Path) -> None:
    """Write a table; a row that lacks a column has nothing there. Names of files are written as they are, UTF-8 or not."""
    columns = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path, column: str = "") -> list[dict[str, str]]:
    """A table that `write_rows` has written, or a spreadsheet since; no rows if there is no file, or nothing in it.

    Args:
        path: of the table.
        column: that it must have; any table will do if empty.

    Raises:
        csv.Error: if it is no table.
        UserError: if it lacks the column, as one does whose cells are separated by semicolons.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as handle:
        table = csv.DictReader(handle)
        if column and table.fieldnames and column not in table.fieldnames:
            raise UserError(f"{path}: no column '{column}'. Save it with commas, or move it away.")
        return [{name: cell for name, cell in row.items() if name is not None} for row in table]  # None: cells beyond the last column


def check_column(path: Path, column: str) -> None:
    """Before hours are spent on new rows of a table.

    Raises:
        UserError: as `read_rows`, and for what is no table.
    """
    try:
        read_rows(path, column)
    except (csv.Error, OSError) as error:
        raise UserError(f"{path}: no table ({getattr(error, 'strerror', None) or error}). Move it away.") from error


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """Markdown table whose first columns hold words, the others numbers."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
