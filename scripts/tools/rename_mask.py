"""Rename the vertebrae of a mask where inference got the levels wrong, or confirm the names that they have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AlreadyNamedError(UserError):
    """Error for a mask that already has the given names, if there is nothing to confirm."""


class Renaming(NamedTuple):
    """A mask before and after its levels are renamed; both hold channel indices (XYZ)."""

    mask: Path
    before: Volume
    label: np.ndarray  # after renaming
    removed_discs: list[str]
    label_scheme: str  # of the file
    lumbar: int  # as given; 0: as many lumbar vertebrae as the mask has
    is_same: bool  # no name changes
    is_edited: bool  # the file is not the one that its report describes


def rename_mask(prediction: str | Path, lowest: str = "", lumbar: int = 0, image: str | Path = "", label_scheme: str = "") -> bool:
    """Rename the levels of a mask in its file (`rename_levels`), and update its report and its picture, if there are any.

    From then on the mask counts as corrected by hand: inference keeps it, and takes its rows in the tables from the new report. Given the
    names that the mask has, this confirms them. A mask that was edited in a viewer is measured and drawn anew.

    Args:
        prediction: mask, NIfTI.
        lowest: right name of its lowest body; empty: the name that it has.
        lumbar: how many lumbar vertebrae this spine has: 4, 5 or 6; 0: as many as the mask has.
        image: its scan, which is needed if there is a report; empty: the one that the report names, or the one beside the mask.
        label_scheme: scheme of the numbers in the mask; empty: what the report says, else `verse`.

    Returns:
        True if inference made the mask, so that its tables are out of date now.

    Raises:
        CallError: for a file that is not there, or names and numbers that do not exist.
        AlreadyNamedError: for a mask that already has these names, if there is nothing to confirm.
        UserError: for a mask that cannot be read or renamed so; nothing is written then.
    """
    mask = _check_call(prediction, lowest, lumbar, image)
    volume, label_scheme = read_mask(mask, label_scheme)
    label, removed_discs = rename_levels(volume.data, volume.affine, lowest, lumbar, str(mask))
    report = read_report(mask)
    is_same, is_edited = bool((label == volume.data).all()), not is_as_reported(mask, report)
    renaming = Renaming(mask, volume, label, removed_discs, label_scheme, lumbar, is_same, is_edited)
    _check_has_effect(renaming, report)
    values = decode(label, label_scheme)
    if (encode(values, str(mask), label_scheme) != label).any():
        raise UserError(f"{mask}: the numbers of {label_scheme} cannot express these levels. Segment the scan with --label_scheme verse.")
    has_report = is_report(report)
    if has_report:
        report, figure = _new_report_and_figure(renaming, report, image)
    mask_sha256 = ""
    if is_edited or not is_same:  # a confirmation changes no number
        mask_sha256 = write_label_map(values, volume.affine, mask)
    _print_outcome(renaming)
    if not has_report:
        return False
    for warning in report["warnings"]:
        print(shown(f"{mask}: {warning}"))
    write_report(mask, report, mask_sha256)
    if beside(mask, ".png").is_file():
        save_figure(figure, beside(mask, ".png"))
    return "made_from" in report


def _check_call(prediction: str | Path, lowest: str, lumbar: int, image: str | Path) -> Path:
    """Return the path of the mask; refuse a call without it or without a name, and a mask that cannot be written.

    Raises:
        CallError: for such a call.
    """
    if not prediction or not (lowest or lumbar):
        raise CallError("rename needs --prediction, a mask, and --lowest, the right name of its lowest body, or --lumbar, 4, 5 or 6")
    check_files(prediction=prediction, image=image)
    mask = Path(prediction)
    if not mask.name.lower().endswith((".nii", ".nii.gz")):
        raise CallError(f"{mask}: rename writes NIfTI masks only, .nii or .nii.gz")
    if not os.access(mask.parent, os.W_OK):
        raise CallError(f"{mask.parent}: cannot be written to. Copy the mask and its report to a folder that can.")
    return mask


def _check_has_effect(renaming: Renaming, report: Mapping[str, Any]) -> None:
    """Refuse to give a mask the names that it has, unless that confirms them for the first time, or for an edited mask.

    Raises:
        AlreadyNamedError: for such a mask.
    """
    if not renaming.is_same:
        return
    already = f"{renaming.mask}: it has these names already"
    if not is_report(report):
        raise AlreadyNamedError(f"{already}, and there is no report beside it in which to confirm them.")
    if "renamed" in report and not renaming.is_edited:
        raise AlreadyNamedError(f"{already}. Set --lowest to the right name of its lowest body, or --lumbar to the right number.")


def _new_report_and_figure(renaming: Renaming, report: Mapping[str, Any], image: str | Path) -> tuple[dict[str, Any], Figure]:
    """Make the report and the picture of the renamed mask on its scan.

    Raises:
        UserError: if the scan is not found, cannot be read or is on another grid.
    """
    mask = renaming.mask
    path = image or scan_of(mask)
    if not path:
        raise UserError(f"{mask}: its scan is not found, neither where its report says nor beside it. Set --image.")
    scan = read_scan(path)
    label = on_grid(mask, renaming.before._replace(data=renaming.label), path, scan)
    marks = {"uncertain": False, "renamed": {"lowest": _body_names(renaming.label)[-1], "lumbar": renaming.lumbar}}
    if renaming.is_same and not renaming.is_edited:
        report = _confirmed_report(report, marks)
    else:
        report = _renamed_report(report, _new_names(renaming.before.data, renaming.label), label, scan, renaming.label_scheme, marks)
    words = {"title": shown(case_name(path)), "note": picture_note(report), "warnings": report["warnings"]}
    figure = case_figure(scan.data, label, scan.affine, **words)
    return report, figure


def _print_outcome(renaming: Renaming) -> None:
    """Print which names were changed or confirmed, and how to undo that unless discs were removed."""
    before, after = _body_names(renaming.before.data), _body_names(renaming.label)
    if renaming.is_same:
        lines = [f"the names {after[0]}-{after[-1]} are confirmed"]
    else:
        lines = [f"{before[0]}-{before[-1]} renamed to {after[0]}-{after[-1]}"]
    if renaming.removed_discs:
        lines.append(f"removed {', '.join(renaming.removed_discs)}, because the label table has no such disc at the new place")
    elif not renaming.is_same:
        lines.append(f"to undo this, run rename with --lowest {before[-1]} --lumbar {lumbar_number(before)}")
    for line in lines:
        print(shown(f"{renaming.mask}: {line}"))


def _confirmed_report(report: Mapping[str, Any], marks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report of a mask that nobody has edited, marked as rightly named."""
    others = [line for line in report.get("warnings", []) if not line.startswith(UNCERTAIN)]
    return {**report, **marks, "warnings": [*named_by_hand(marks), *others]}


def _new_names(before: np.ndarray, after: np.ndarray) -> dict[str, str]:
    """Return the new name of each structure by its old name, without the structures that were removed."""
    table, (channels, first) = label_table(), np.unique(before, return_index=True)
    return {table[c].name: table[now].name for c, now in zip(channels, after.flat[first]) if now}


def _renamed_report(
    report: Mapping[str, Any], names: Mapping[str, str], label: np.ndarray, scan: Volume, label_scheme: str, marks: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the report of a renamed mask (channel indices, XYZ), without what the network said of the old names."""
    before = [{**row, "name": names[row["name"]]} for row in report["structures"] if row["name"] in names]
    now, _ = report_on(label, scan.affine, scan, label_scheme, marks, {"structures": before})
    kept = {key: value for key, value in report.items() if not key.startswith("runner_up")}
    return {**kept, **now}


def _body_names(label: np.ndarray) -> list[str]:
    """Return the names of the bodies in a mask, from top to bottom."""
    present = np.bincount(label.ravel(), minlength=len(label_table())) > 0
    return [s.name for s in of_kind("body") if present[s.channel]]
