"""Measure masks: those of this bundle, corrected ones, and those of other origin."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from scripts.common.errors import CallError, UserError, counted, listed, shown
from scripts.common.files import alone_in, write_whole
from scripts.common.preflight import check_files, check_writable
from scripts.common.tables import read_rows, write_rows
from scripts.data.find import find_masks, without_postfix
from scripts.data.masks import is_report, read_mask, read_report, scan_of
from scripts.data.own_masks import is_as_reported
from scripts.data.scans import read_scan
from scripts.data.volumes import Volume, on_grid, read_volume
from scripts.figures import check_picture, save_figure
from scripts.labels import check_scheme, label_table
from scripts.measure.doubts import picture_note
from scripts.measure.picture import measures_figure
from scripts.measure.report import report_on
from scripts.measure.rows import in_order, spine_row, structure_table
from scripts.measure.spine import SpineMeasures


class Measured(NamedTuple):
    """A mask that was measured, on the grid of its scan if there is one."""

    report: dict[str, Any]
    is_edited: bool | None  # since its report was written; None without a report
    label: np.ndarray  # channel indices, XYZ
    measures: SpineMeasures
    scan: Volume | None


def measure(
    dataset_dir: str | Path, output_dir: str | Path, prediction: str | Path = "", image: str | Path = "", label_scheme: str = ""
) -> list[dict]:
    """Measure masks (`measure_spine`) and write tables, and a picture of every mask that has a scan.

    The tables are `measures.csv`, with a row per mask and structure like those of `structures.csv`, and `measured_spines.csv`, with a row
    per mask. Tables that inference has written to the same folder stay. The scan of a mask is the one that its report names, or the one
    beside it with its name without `_seg`.

    Args:
        dataset_dir: folder with masks; those below it are measured too. The tables name a mask by its path from there.
        output_dir: folder of the tables and of the pictures `<stem>_measures.png`, which lie in the same folders as the masks.
        prediction: one mask instead of a folder; rows of other masks stay in the tables.
        image: its scan.
        label_scheme: scheme of the numbers in the masks; empty: what the report beside a mask says, else `verse`.

    Returns:
        the rows of `measures.csv`: `mask` and, for every structure in it, `name`, `value`, `cut_by_view`, `volume_mm3` and what could
        be measured.

    Raises:
        CallError: if there is no mask, a file is not there, or for an unknown scheme.
        UserError: after the others, for masks that cannot be read or do not fit their scan.
    """
    if image and not prediction:
        raise CallError("measure takes --image, a scan, with --prediction, its mask; --dataset_dir takes a folder of masks")
    check_files(prediction=prediction, image=image)
    masks = [Path(prediction)] if prediction else find_masks(dataset_dir)
    if label_scheme:
        check_scheme(label_scheme)
    check_writable(str(output_dir), "output_dir")
    tables = [Path(output_dir) / name for name in ("measures.csv", "measured_spines.csv")]
    earlier = [read_rows(table, "mask") for table in tables] if prediction else [[], []]  # now, so that a bad table is refused at once
    known = {os.path.realpath(row.get("file") or Path(dataset_dir, row["mask"] or "")): row["mask"] for row in earlier[1]}
    structures, spines, notes, failed, without_scan = [], [], [], [], []
    for mask in tqdm(masks, desc="measure", unit="mask"):
        name = _name(mask, dataset_dir, known)
        try:
            scan = Path(image) if image else scan_of(mask)
            report, is_edited, fault = _measure_and_draw(mask, scan, label_scheme, name, Path(output_dir))
        except UserError as error:
            failed.append(str(error))
            continue
        failed += fault
        if scan is None:
            without_scan.append(mask)
        structures += structure_table({"mask": name, "edited_since": is_edited}, report)
        files = {"file": os.path.abspath(mask), "scan": os.path.abspath(scan) if scan else None}
        spines.append({"mask": name, **files, "edited_since": is_edited, **spine_row(report)})
        notes += [f"{mask}: {warning}" for warning in report["warnings"]]
    _write_tables(tables, (structures, spines), keep_others=bool(prediction))
    for note in notes:
        print(shown(note))
    if without_scan:
        which = f"{counted(without_scan, 'mask')} without a scan ({listed(without_scan)})"
        print(shown(f"{which}: no signals, no picture, and what a blank border cuts is not known"))
    if failed:
        raise UserError("\n".join(failed))
    return structures


def _name(mask: Path, dataset_dir: str | Path, known: Mapping[str, str]) -> str:
    """Return the name of a mask in the tables.

    It is the earlier name, if its file is `known`; else the path from `dataset_dir`, or the whole path of a mask that lies elsewhere or
    whose name another mask has.
    """
    inside = Path(os.path.relpath(mask, dataset_dir))
    name = os.path.abspath(mask) if inside.parts[:1] == (os.pardir,) or inside.as_posix() in known.values() else inside.as_posix()
    return known.get(os.path.realpath(mask), name)


def _measure_and_draw(
    mask: Path, scan: Path | None, label_scheme: str, name: str, output_dir: Path
) -> tuple[dict[str, Any], bool | None, list[str]]:
    """Return `report` and `is_edited` of a mask, and why its picture could not be drawn; the scan is let go before the next one is read.

    Raises:
        UserError: if the mask or the scan cannot be read, or they do not fit.
    """
    measured = _measure_one(mask, scan, label_scheme)
    fault = []
    if measured.scan:
        folder = output_dir if Path(name).is_absolute() else (output_dir / name).parent
        try:
            _draw(measured, scan, folder / f"{without_postfix(mask).name}_measures.png", without_postfix(Path(name)).as_posix())
        except UserError as error:  # another file in the place of the picture must not cost the numbers
            fault.append(str(error))
    return measured.report, measured.is_edited, fault


def _measure_one(mask: Path, scan: Path | None, label_scheme: str) -> Measured:
    """Make a report on a mask like that of inference, which keeps what an earlier report says of the names."""
    before = read_report(mask)
    is_edited = not is_as_reported(mask, before) if is_report(before) else None
    if is_edited is None or label_scheme not in ("", before.get("label_scheme")):
        before = {}  # read in another scheme, the numbers mean other names
    volume, label_scheme = read_mask(mask, label_scheme)
    label, affine, image = volume.data, volume.affine, None
    if scan:
        image = read_scan(scan)
        label, affine = on_grid(mask, volume, scan, image), image.affine
    report, measures = report_on(label, affine, image, label_scheme, {} if is_edited else before, before)
    if label_scheme == "spider":
        report["structures"] = _with_stored_values(report["structures"], mask, volume.data)
    return Measured(report, is_edited, label, measures, image)


def _with_stored_values(rows: Sequence[dict[str, Any]], mask: Path, channels: np.ndarray) -> list[dict[str, Any]]:
    """Set the `value` of each row to the number in the file.

    SPIDER counts from the lowest lumbar vertebra, and the file alone does not tell which that is.
    """
    present, first = np.unique(channels, return_index=True)
    stored = {label_table()[c].name: int(value) for c, value in zip(present, read_volume(mask).data.flat[first])}
    return [{**row, "value": stored.get(row["name"])} for row in rows]


def _draw(measured: Measured, scan: Path, picture: Path, title: str) -> None:
    """Draw the measures on the scan.

    Raises:
        UserError: if another file is in the place of the picture.
    """
    check_picture(picture, scan)
    volume, note = measured.scan, picture_note(measured.report)
    figure = measures_figure(volume.data, measured.label, volume.affine, measured.measures, shown(title), note)
    save_figure(figure, picture, source=str(scan))


def _write_tables(tables: Sequence[Path], contents: Sequence[list[dict]], keep_others: bool) -> None:
    """Write tables that have rows, and print their paths; with `keep_others`, rows of other masks than the first stay."""
    with alone_in(tables[0].parent):  # other processes may measure other masks meanwhile
        for table, rows in zip(tables, contents):
            if rows:
                others = [row for row in read_rows(table, "mask") if row["mask"] != rows[0]["mask"]] if keep_others else []
                print(shown(write_whole(table, partial(write_rows, in_order(others + rows)))))
