"""Give the vertebrae of a mask other names, where inference got the levels wrong, or confirm those that they have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scripts.common.errors import CallError, UserError, shown
from scripts.common.preflight import check_files
from scripts.data.find import case_name
from scripts.data.masks import beside, is_report, read_mask, read_report, scan_of, write_label_map
from scripts.data.own_masks import is_as_reported, write_report
from scripts.data.scans import read_scan
from scripts.data.volumes import Volume, on_grid
from scripts.figures import case_figure, save_figure
from scripts.labels import decode, encode, label_table, of_kind
from scripts.levels.renaming import lumbar_number, rename_levels
from scripts.measure.doubts import UNCERTAIN, named_by_hand, picture_note
from scripts.measure.report import report_on


class AlreadyNamedError(UserError):
    """There is nothing to rename and nothing to confirm."""


def rename(prediction: str | Path, lowest: str = "", lumbar: int = 0, image: str | Path = "", label_scheme: str = "") -> None:
    """Rename the levels of a mask in its file (`rename_levels`), and bring its report and its picture, if there are any, up to date.

    From then on the mask counts as corrected by hand: inference keeps it, and takes its rows in the tables from the new report. The names
    that inference gave it are confirmed so, and what was edited in a viewer is measured and drawn anew.

    Args:
        prediction: mask, NIfTI.
        lowest: name of its lowest body; empty: the one that it has.
        lumbar: how many lumbar vertebrae this spine has: 4, 5 or 6; 0: as many as the mask has.
        image: its scan, which is looked for if there is a report; empty: the one that the report names, or the one beside it.
        label_scheme: of the numbers in the mask; empty: what the report says, else `verse`.

    Raises:
        CallError: for a file that is not there, or names and numbers that do not exist.
        AlreadyNamedError: for a mask that has these names, if there is nothing to confirm.
        UserError: for a mask that cannot be read or renamed so; nothing is written then.
    """
    if not prediction or not (lowest or lumbar):
        raise CallError("rename needs --prediction, a mask, and --lowest, the right name of its lowest body, or --lumbar, 4, 5 or 6")
    check_files(prediction=prediction, image=image)
    mask = Path(prediction)
    if not mask.name.lower().endswith((".nii", ".nii.gz")):
        raise CallError(f"{mask}: rename writes NIfTI masks only, .nii or .nii.gz")
    if not os.access(mask.parent, os.W_OK):
        raise CallError(f"{mask.parent}: cannot be written to. Copy the mask and its report to a folder that can.")
    volume, label_scheme = read_mask(mask, label_scheme)
    label = volume.data
    renamed, lost = rename_levels(label, volume.affine, lowest, lumbar, str(mask))
    report, figure = read_report(mask), None
    reported, same, edited = is_report(report), (renamed == label).all(), not is_as_reported(mask, report)
    already = f"{mask}: it has these names already"
    if same and not reported:
        raise AlreadyNamedError(f"{already}, and no report beside it in which they could be confirmed.")
    if same and "renamed" in report and not edited:
        raise AlreadyNamedError(f"{already}. --lowest is the right name of its lowest body, --lumbar the right number.")
    values = decode(renamed, label_scheme)
    if (encode(values, str(mask), label_scheme) != renamed).any():
        raise UserError(f"{mask}: the numbers of {label_scheme} cannot tell these levels. Segment the scan with --label_scheme verse.")
    if reported:
        scan = image or scan_of(mask)
        if not scan:
            raise UserError(f"{mask}: the scan that its report and its picture tell of is not found. Set --image.")
        drawn_on = read_scan(scan)
        on_scan = on_grid(mask, volume._replace(data=renamed), scan, drawn_on)
        marks = {"uncertain": False, "renamed": {"lowest": _ends(renamed)[1], "lumbar": lumbar}}
        if same and not edited:
            report = _confirmed_report(report, marks)
        else:
            report = _renamed_report(report, _new_names(label, renamed), on_scan, drawn_on, label_scheme, marks)
        figure = case_figure(drawn_on.data, on_scan, drawn_on.affine, title=shown(case_name(scan)), note=picture_note(report))
    if edited or not same:  # a confirmation changes no number
        write_label_map(values, volume.affine, mask)
    names = "-".join(_ends(renamed))
    print(shown(f"{mask}: its names, {names}, are confirmed" if same else f"{mask}: {'-'.join(_ends(label))} are {names} now"))
    if not (same or lost):
        before = _body_names(label)
        print(shown(f"{mask}: --lowest {before[-1]} --lumbar {lumbar_number(before)} takes it back"))
    if lost:
        print(shown(f"{mask}: {', '.join(lost)} went: the label table has no such disc at the new place"))
    if not reported:
        return
    for warning in report["warnings"]:
        print(shown(f"{mask}: {warning}"))
    write_report(mask, report)
    if beside(mask, ".png").is_file():
        save_figure(figure, beside(mask, ".png"))
    if "made_from" in report:
        print("the tables and the overview follow when the same inference is run again")


def _confirmed_report(report: Mapping[str, Any], marks: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a mask that nobody has edited, whose names are right."""
    others = [line for line in report.get("warnings", []) if not line.startswith(UNCERTAIN)]
    return {**report, **marks, "warnings": [*named_by_hand(marks), *others]}


def _new_names(label: np.ndarray, renamed: np.ndarray) -> dict[str, str]:
    """Name of each structure before -> now, of those that are still there."""
    table, (channels, first) = label_table(), np.unique(label, return_index=True)
    return {table[c].name: table[now].name for c, now in zip(channels, renamed.flat[first]) if now}


def _renamed_report(
    report: Mapping[str, Any], names: Mapping[str, str], label: np.ndarray, scan: Volume, label_scheme: str, marks: Mapping[str, Any]
) -> dict[str, Any]:
    """The report of a mask (channel indices, XYZ) that was renamed: what the network has said of the names is no longer true."""
    before = [{**row, "name": names[row["name"]]} for row in report["structures"] if row["name"] in names]
    now, _ = report_on(label, scan.affine, scan, label_scheme, marks, {"structures": before})
    kept = {key: value for key, value in report.items() if not key.startswith("runner_up")}
    return {**kept, **now}


def _ends(label: np.ndarray) -> tuple[str, str]:
    """Names of the uppermost and the lowest body."""
    names = _body_names(label)
    return names[0], names[-1]


def _body_names(label: np.ndarray) -> list[str]:
    present = np.bincount(label.ravel(), minlength=len(label_table())) > 0
    return [s.name for s in of_kind("body") if present[s.channel]]
