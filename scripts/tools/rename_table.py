"""The command `rename`: of one mask, or of every mask that a table names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scripts.common.errors import CallError, UserError, shown
from scripts.common.preflight import check_files
from scripts.common.tables import check_column, read_rows
from scripts.tools.rename import AlreadyNamedError, rename


def run(
    prediction: str | Path = "", lowest: str = "", lumbar: int = 0, image: str | Path = "", label_scheme: str = "", names: str | Path = ""
) -> None:
    """`rename`, or with `names` `rename_listed`.

    Raises:
        CallError: as these two, and for a table beside what it takes the place of.
        UserError: as these two.
    """
    if not names:
        rename(prediction, lowest, lumbar, image, label_scheme)
    elif prediction or lowest or lumbar or image:
        raise CallError("rename takes --names, a table, in the place of --prediction, --lowest, --lumbar and --image")
    else:
        rename_listed(names, label_scheme)


def rename_listed(names: str | Path, label_scheme: str = "") -> None:
    """Rename (`rename`) every mask of a table, such as `spines.csv` with a column more; masks that have their names already stay.

    Args:
        names: CSV with the columns `mask`, a path from the folder of the table, `lowest`, the right name of its lowest body, and, if need
            be, `lumbar`, 4, 5 or 6. Rows without either are passed over.
        label_scheme: of the numbers in the masks; empty: what the report of each says, else `verse`.

    Raises:
        CallError: for a table that is not there, or without such a row.
        UserError: for a file that is no such table, and after the others for masks that cannot be renamed.
    """
    check_files(names=names)
    check_column(Path(names), "mask")
    rows = [row for row in read_rows(Path(names), "mask") if _cell(row, "mask") and (_cell(row, "lowest") or _cell(row, "lumbar"))]
    if not rows:
        raise CallError(f"{names}: no row has a value in a column 'lowest' or 'lumbar'. Add the columns, and fill in what is right.")
    failed = []
    for row in rows:
        mask = Path(names).parent / _cell(row, "mask")
        try:
            rename(mask, _cell(row, "lowest"), _lumbar(row, mask), label_scheme=label_scheme)
        except AlreadyNamedError as error:
            print(shown(error))
        except UserError as error:
            failed.append(str(error) if str(mask) in str(error) else f"{mask}: {error}")
    if failed:
        raise UserError("\n".join(failed))


def _cell(row: Mapping[str, str | None], column: str) -> str:
    return (row.get(column) or "").strip()


def _lumbar(row: Mapping[str, str | None], mask: Path) -> int:
    """
    Raises:
        UserError: for what is no whole number; spreadsheets write 6 as 6.0, too.
    """
    text = _cell(row, "lumbar") or "0"
    try:
        if (number := float(text)).is_integer():
            return int(number)
    except ValueError:
        pass
    raise UserError(f"{mask}: the lumbar vertebrae are '{text}' in the table; 4, 5 or 6 is needed, or nothing")
