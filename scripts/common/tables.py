"""Tables as text and as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

from scripts.common.errors import UserError


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Format rows of text as aligned columns; the columns numbered in `left` are flush left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write_rows(rows: list[dict], path: Path) -> None:
    """Write a CSV table; a column that a row lacks stays empty there. Names of files are written byte by byte, UTF-8 or not."""
    columns = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path, column: str = "") -> list[dict[str, str]]:
    """Read a CSV table as `write_rows` or a spreadsheet writes it; no rows if there is no file, or nothing in it.

    Args:
        path: the file.
        column: a column that it must have; empty: any table will do.

    Raises:
        csv.Error: if it is no table.
        UserError: if it lacks the column, which is also so where semicolons separate the cells.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as handle:
        table = csv.DictReader(handle)
        if column and table.fieldnames and column not in table.fieldnames:
            raise UserError(f"{path}: no column '{column}'. Save it with commas, or move it away.")
        return [{name: cell for name, cell in row.items() if name is not None} for row in table]  # None holds cells beyond the last column


def check_column(path: Path, column: str) -> None:
    """Refuse a file in the place of a table that could not be added to, before hours are spent on new rows.

    Raises:
        UserError: if it is no table, or lacks the column.
    """
    try:
        read_rows(path, column)
    except (csv.Error, OSError) as error:
        raise UserError(f"{path}: not a CSV table ({getattr(error, 'strerror', None) or error}). Move it away.") from error


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """Format a Markdown table whose first `words` columns hold words, the others numbers."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
