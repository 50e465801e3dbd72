"""Make rows on the structures of a mask, for its report and for tables of many masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from nibabel.affines import apply_affine

from scripts.common.arrays import structure_centres
from scripts.data.volumes import voxel_mm3
from scripts.labels import label_table, numbers, structure
from scripts.measure.doubts import RENAMED, lacks_sacrum
from scripts.measure.signal import measure_signals

# measures of structures and of spines, in the order of their columns in every table, whichever mask comes first
MEASURES = (
    "centre_x_mm", "centre_y_mm", "centre_z_mm", "signal_mean", "signal_sd", "signal_median",
    "anterior_height_mm", "middle_height_mm", "posterior_height_mm", "depth_mm", "wedge_deg", "coronal_deg", "axial_deg", "height_loss",
    "height_loss_grade", "slip_mm", "slip_percent", "angle_deg", "height_index", "lordosis_deg", "lordosis_l1_l5_deg", "cobb_deg",
    "cobb_levels", "warnings",
)  # fmt: skip


CENTRE = MEASURES[:3]
SPINE_WORDS = {"lordosis_deg": "lordosis L1-S1", "lordosis_l1_l5_deg": "lordosis L1-L5", "cobb_deg": "Cobb"}  # words for pictures and pages


def structure_rows(
    found: Iterable[Mapping[str, Any]], label: np.ndarray, affine: np.ndarray, label_scheme: str, scan: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Complete the rows on the structures of a mask.

    Each gets its `value` in the file of the mask (None if the scheme has none), its `volume_mm3` and the `centre_x_mm`, `centre_y_mm` and
    `centre_z_mm` of its voxels (None if it is not drawn), and, with a scan, its signals (`measure_signals`).

    Args:
        found: rows with a `name` each. A structure that the mask does not hold, such as a small one removed with the specks, is left out
            unless it has `measures`, since those of a disc are taken between end-plates, drawn or not.
        label: channel indices, shape XYZ.
        affine: 4x4, voxel -> world mm.
        label_scheme: scheme of the numbers in the file.
        scan: scan on the same grid.
    """
    in_mask = numbers(label, label_scheme)
    volumes = np.bincount(label.ravel(), minlength=len(label_table())) * voxel_mm3(affine)
    signals = measure_signals(label, scan, affine) if scan is not None else {}
    centres_mm = _centres_mm(label, affine)
    rows = []
    for row in found:
        channel = structure(row["name"]).channel
        if volumes[channel] or row.get("measures"):
            volume_mm3 = round(float(volumes[channel]), 1) if volumes[channel] else None
            value = int(in_mask[channel]) if volumes[channel] else None
            centre = dict(zip(CENTRE, centres_mm.get(channel, (None, None, None))))
            of_mask = {"volume_mm3": volume_mm3, **centre, **signals.get(row["name"], {})}
            rows.append({"name": row["name"], "value": value or None, **rounded(row), **of_mask})
    return rows


def _centres_mm(label: np.ndarray, affine: np.ndarray) -> dict[int, list[float]]:
    """Return the centre of the voxels of each channel: mm to the patient's right, front and head, rounded to a tenth."""
    return {c: [round(float(mm), 1) for mm in apply_affine(affine, voxel)] for c, voxel in structure_centres(label).items()}


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Round the floats of a row to four decimals; further ones of probabilities and entropies change with the number of threads."""
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def table_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a row of a report into cells of a table: a column for every measure, the faces that cut the structure as words."""
    cells = {key: value for key, value in row.items() if key != "measures"}
    return {**cells, "cut_by_view": " ".join(row.get("cut_by_view", [])), **row.get("measures", {})}


def structure_table(of_mask: Mapping[str, Any], report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a `table_row` for every structure of a report, or an empty one, behind the columns on the mask and its names."""
    of_mask = {**of_mask, **_of_names(report)}
    return [{**of_mask, **table_row(row)} for row in report["structures"]] or [of_mask]


def spine_row(report: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what a report says of a whole mask into cells of a table: certainty of the names, measures of the `spine`, and warnings.

    The warning about names that somebody has given is left out, because they have a column.
    """
    warnings = [line for line in report.get("warnings", []) if not line.startswith(RENAMED)]
    return {**_of_names(report), **report.get("spine", {}), "warnings": " | ".join(warnings)}


def _of_names(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells on the names: their label scheme, how certain they are, and whether somebody has given them, None if unknown."""
    known = {key: report.get(key) for key in ("label_scheme", "sequence_probability", "uncertain")}
    if lacks_sacrum(report):
        known["sequence_probability"] = None
    return {**known, "named_by_hand": None if known["uncertain"] is None else "renamed" in report}


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give all rows of a table the same columns: first those that identify the row, then those of the `MEASURES` that any mask has."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [*(n for n in names if n not in MEASURES), *(n for n in MEASURES if n in names)]
    return [{name: row.get(name) for name in columns} for row in rows]
