"""Measure masks: of this bundle, corrected by hand or drawn by somebody else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.common.errors import CallError, UserError, counted, listed, shown
from scripts.common.files import alone_in, write_whole
from scripts.common.preflight import check_files, check_writable
from scripts.common.tables import read_rows, write_rows
from scripts.data.find import LABEL_POSTFIX, case_name, find_masks
from scripts.data.masks import is_report, read_mask, read_report, scan_of
from scripts.data.own_masks import is_as_reported
from scripts.data.scans import read_scan
from scripts.data.volumes import on_grid, read_volume
from scripts.figures import check_picture, save_figure
from scripts.labels import check_scheme, label_table
from scripts.measure.doubts import picture_note
from scripts.measure.picture import measures_figure
from scripts.measure.report import report_on
from scripts.measure.rows import in_order, spine_row, structure_table


def measure(
    dataset_dir: str | Path, output_dir: str | Path, prediction: str | Path = "", image: str | Path = "", label_scheme: str = ""
) -> list[dict]:
    """`measures.csv`, a row per mask and structure like those of `structures.csv`, and `measured_spines.csv`, a row per mask
    (`measure_spine`); a picture where there is a scan. Tables that inference has written to the same folder stay.

    The scan of a mask is the one that its report names, or the one beside it with its name without `_seg`.

    Args:
        dataset_dir: folder with masks; those below it are measured too. The tables name a mask by its path from there.
        output_dir: for tables and pictures `<stem>_measures.png`, in the same folders as the masks.
        prediction: one mask instead of a folder; rows of other masks stay in the tables.
        image: its scan.
        label_scheme: of the numbers in the masks; empty: what the report beside a mask says, else `verse`.

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
    earlier = [read_rows(table, "mask") for table in tables] if prediction else [[], []]  # whoever has changed one learns it now
    known = {os.path.realpath(row.get("file") or Path(dataset_dir, row["mask"] or "")): row["mask"] for row in earlier[1]}
    structures, spines, notes, failed, alone = [], [], [], [], []
    for mask in tqdm(masks, desc="measure", unit="mask"):
        of_mask = {"mask": _name(mask, dataset_dir, known)}
        try:
            scan = Path(image) if image else scan_of(mask)
            report, edited, draw = _measure_one(mask, scan, label_scheme)
        except UserError as error:
            failed.append(str(error))
            continue
        try:
            draw(of_mask["mask"], Path(output_dir) if Path(of_mask["mask"]).is_absolute() else (Path(output_dir) / of_mask["mask"]).parent)
        except UserError as error:  # a picture in the way costs no numbers
            failed.append(str(error))
        del draw  # else the scan is held while the next one is read
        if scan is None:
            alone.append(mask)
        structures += structure_table({**of_mask, "edited_since": edited}, report)
        files = {"file": os.path.abspath(mask), "scan": os.path.abspath(scan) if scan else None}
        spines.append({**of_mask, **files, "edited_since": edited, **spine_row(report)})
        notes += [f"{mask}: {warning}" for warning in report["warnings"]]
    with alone_in(Path(output_dir)):  # others may measure other masks meanwhile
        for table, rows in zip(tables, (structures, spines)):
            if rows:
                others = [row for row in read_rows(table, "mask") if row["mask"] != rows[0]["mask"]] if prediction else []
                print(shown(write_whole(table, partial(write_rows, in_order(others + rows)))))
    for note in notes:
        print(shown(note))
    if alone:
        which = f"{counted(alone, 'mask')} without a scan ({listed(alone)})"
        print(shown(f"{which}: no signals, no picture, and what a blank border cuts is not known"))
    if failed:
        raise UserError("\n".join(failed))
    return structures


def _name(mask: Path, dataset_dir: str | Path, known: Mapping[str, str]) -> str:
    """What the tables call a mask: as before, if its file is `known`; else its path from `dataset_dir`, or the whole path of one that
    lies elsewhere or has the name of another."""
    inside = Path(os.path.relpath(mask, dataset_dir))
    name = os.path.abspath(mask) if inside.parts[:1] == (os.pardir,) or inside.as_posix() in known.values() else inside.as_posix()
    return known.get(os.path.realpath(mask), name)


def _measure_one(mask: Path, scan: Path | None, label_scheme: str) -> tuple[dict[str, Any], bool | None, Callable[[str, Path], None]]:
    """A report on a mask as inference writes it, with what that has said of the names; whether the mask was edited since (None: there is no
    report); and what draws its picture, under a name, into a folder."""
    before = read_report(mask)
    edited = not is_as_reported(mask, before) if is_report(before) else None
    if edited is None or label_scheme not in ("", before.get("label_scheme")):
        before = {}  # with other numbers its names are others
    volume, label_scheme = read_mask(mask, label_scheme)
    label, affine, image = volume.data, volume.affine, None
    if scan:
        image = read_scan(scan)
        label, affine = on_grid(mask, volume, scan, image), image.affine
    report, measures = report_on(label, affine, image, label_scheme, {} if edited else before, before)
    if label_scheme == "spider":  # counted from the lowest lumbar vertebra, and which that is the file alone does not tell
        channels, first = np.unique(volume.data, return_index=True)
        of_name = {label_table()[c].name: int(value) for c, value in zip(channels, read_volume(mask).data.flat[first])}
        report["structures"] = [{**row, "value": of_name.get(row["name"])} for row in report["structures"]]

    def draw(name: str, folder: Path) -> None:
        if image:
            picture = folder / f"{case_name(mask).removesuffix(LABEL_POSTFIX)}_measures.png"
            check_picture(picture, scan)
            title = Path(name).with_name(case_name(name).removesuffix(LABEL_POSTFIX)).as_posix()
            figure = measures_figure(image.data, label, affine, measures, shown(title), picture_note(report))
            save_figure(figure, picture, source=str(scan))

    return report, edited, draw
