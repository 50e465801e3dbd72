"""The command `rename`, for one mask or for every mask that a table names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scripts.common.errors import CallError, UserError, counted, shown, similar_path
from scripts.common.preflight import check_files
from scripts.common.tables import check_column, read_rows
from scripts.tools.rename_mask import AlreadyNamedError, rename_mask

TABLES_FOLLOW = "the tables and the overview are updated when the same inference is run again"


def rename(
    prediction: str | Path = "", lowest: str = "", lumbar: int = 0, image: str | Path = "", label_scheme: str = "", names: str | Path = ""
) -> None:
    """Rename one mask (`rename_mask`) or, with `names`, those of a table (`rename_listed`).

    Raises:
        CallError: as these two, and for a table together with options that it replaces.
        UserError: as these two.
    """
    if not names:
        if rename_mask(prediction, lowest, lumbar, image, label_scheme):
            print(TABLES_FOLLOW)
    elif prediction or lowest or lumbar or image:
        raise CallError("rename takes --names, a table, in the place of --prediction, --lowest, --lumbar and --image")
    else:
        rename_listed(names, label_scheme)


def rename_listed(names: str | Path, label_scheme: str = "") -> None:
    """Rename (`rename_mask`) every mask of a table, such as `spines.csv` with one more column; masks that have their names already stay.

    Args:
        names: CSV with the columns `mask`, a path from the folder of the table, `lowest`, the right name of its lowest body, and, if need
            be, `lumbar`, 4, 5 or 6. Rows without either are passed over.
        label_scheme: scheme of the numbers in the masks; empty: what the report of each says, else `verse`.

    Raises:
        CallError: for a file that is not there or no `.csv`, and for a table without such a row.
        UserError: for a file that is no such table, and after the others for masks that cannot be renamed.
    """
    table = Path(names)
    failed, unchanged, tables_lag = [], 0, False
    rows = _rows(table)
    for row in rows:
        mask = table.parent / _cell(row, "mask")
        try:
            if not mask.is_file():
                raise UserError(f"{mask}: no such file. Correct its row in {table}.{similar_path(mask)}")
            tables_lag |= rename_mask(mask, _cell(row, "lowest"), _lumbar(row, mask), "", label_scheme)
        except AlreadyNamedError as error:
            unchanged += 1
            print(shown(error))
        except UserError as error:
            failed.append(str(error) if str(mask) in str(error) else f"{mask}: {error}")
    if tables_lag:
        print(TABLES_FOLLOW)
    renamed = counted(len(rows) - unchanged - len(failed), "mask")
    print(f"{renamed} renamed or confirmed, {unchanged} had these names already, {len(failed)} failed")
    if failed:
        raise UserError("\n".join(failed))


def _rows(table: Path) -> list[dict[str, str]]:
    """Read the rows of a table that name a mask and what is right for it.

    Raises:
        CallError: for a file that is not there or no `.csv`, and if there is no such row.
        UserError: for a file that is no table, or lacks the column `mask`.
    """
    check_files(names=table)
    if table.is_dir() or table.suffix.lower() != ".csv":
        raise CallError(f"--names {table}: a .csv file is needed, with the columns 'mask' and 'lowest' or 'lumbar'")
    check_column(table, "mask")
    rows = [row for row in read_rows(table, "mask") if _cell(row, "mask") and (_cell(row, "lowest") or _cell(row, "lumbar"))]
    if not rows:
        raise CallError(f"{table}: no row has a value in a column 'lowest' or 'lumbar'. Add the columns, and fill in what is right.")
    return rows


def _cell(row: Mapping[str, str | None], column: str) -> str:
    return (row.get(column) or "").strip()


def _lumbar(row: Mapping[str, str | None], mask: Path) -> int:
    """Return the number of lumbar vertebrae in a row, 0 if there is none; spreadsheets may write 6 as 6.0.

    Raises:
        UserError: for anything but a whole number.
    """
    text = _cell(row, "lumbar") or "0"
    try:
        if (number := float(text)).is_integer():
            return int(number)
    except ValueError:
        pass
    raise UserError(f"{mask}: the number of lumbar vertebrae is '{text}' in the table; 4, 5 or 6 is needed, or nothing")
