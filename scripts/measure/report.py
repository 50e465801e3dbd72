"""Report on masks: on one that inference has just drawn, and on one in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes
from scipy.ndimage import label as connected

from scripts.common.arrays import structure_boxes, whole
from scripts.common.errors import listed
from scripts.data.check_labels import order_problems
from scripts.data.volumes import Volume, turned_to_ras
from scripts.labels import label_table, names_disc
from scripts.levels.cut import SIDES, cut_faces, reported_cuts, view_box
from scripts.measure.doubts import doubts
from scripts.measure.rows import rounded, structure_rows
from scripts.measure.spine import SpineMeasures, measure_spine

MASKED_RATIO = 3  # a map with values in fewer voxels than this times those of all structures is blank around them; scans have 10 times
SHOWN_PIECES = 3  # pieces of a structure that a warning lists


def fresh_report(pred: MetaTensor, scan: Volume, notes: Sequence[str]) -> dict[str, Any]:
    """Write the report on a fresh mask: certainty of the names, `structures` with volume, signal and measures, `spine`, and `warnings`.

    Args:
        pred: mask that inference has drawn, channel indices, 1XYZ, with the `report` of `NameLevelsd` in its metadata.
        scan: the scan as it is stored.
        notes: notes of the reader on the scan.
    """
    report = rounded(pred.meta["report"])
    if "label_scheme" in pred.meta:
        report["label_scheme"] = pred.meta["label_scheme"]
    scheme = report.get("label_scheme", "channel")
    report["structures"] = structure_rows(report["structures"], pred[0].numpy(), pred.affine.numpy(), scheme, scan.signal)
    return {**report, "warnings": [*notes, *doubts(report)]}


def report_on(
    label: np.ndarray,
    affine: np.ndarray,
    scan: Volume | None,
    label_scheme: str,
    written: Mapping[str, Any],
    before: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], SpineMeasures]:
    """Write the report on a mask in a file, with the content of `fresh_report`.

    What it says of the names comes from an earlier report; the measures are taken anew.

    Args:
        label: channel indices, shape XYZ.
        affine: 4x4, voxel -> world mm.
        scan: scan on the same grid; None gives no signals, and a blank border is not known to cut structures.
        label_scheme: scheme of the numbers in the file.
        written: earlier report on the very same mask, or empty; it tells how certain the names are and what cuts the structures.
        before: report on the mask before it was edited.

    Returns:
        the report, and the measures with their bodies.
    """
    cut = reported_cuts(written) or _seen_cuts(label, affine, scan, reported_cuts(before or {}))
    measures = measure_spine(label, affine, cut)
    found = [
        {"name": s.name, "cut_by_view": cut.get(s.name, []), "measures": measures.structures.get(s.name, {})} for s in label_table()[1:]
    ]
    report = {"label_scheme": label_scheme, **{key: written.get(key) for key in ("sequence_probability", "uncertain")}}
    report |= {key: written[key] for key in ("renamed", "runner_up") if key in written}
    report |= {"structures": structure_rows(found, label, affine, label_scheme, scan.signal if scan else None), "spine": measures.spine}
    problems = [*order_problems(label, affine, label_scheme), *_pieces(label)]
    report["warnings"] = [*(scan.notes if scan else ()), *problems, *doubts(report)]
    bodies = [row for row in report["structures"] if not names_disc(row["name"])]
    if report["structures"] and not measures.bodies and all({*row["cut_by_view"]} - SIDES for row in bodies):
        reason = "the view cuts every body" if bodies else "the mask holds no body"
        report["warnings"].append(f"nothing could be measured: {reason}")
    return report, measures


def _seen_cuts(label: np.ndarray, affine: np.ndarray, scan: Volume | None, before: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the faces of the view that cut each structure of a mask.

    These are the faces that it touches, and the left and right ones that cut it before the mask was edited, because the network had seen
    where it ends between thick slices.
    """
    turned, turned_affine = turned_to_ras(label, affine)
    view = view_box(turned_to_ras(scan.data, scan.affine)[0]) if scan else whole(turned.shape)
    if scan and np.count_nonzero(scan.data != scan.data.flat[0]) < MASKED_RATIO * np.count_nonzero(label):
        view = whole(turned.shape)  # a map that is blank around the structures does not show where the scan ends
    touched = cut_faces(view, (0, 0, 0), turned, voxel_sizes(turned_affine))
    sides = {name: [face for face in faces if face in SIDES] for name, faces in before.items()}
    return {name: [*dict.fromkeys([*sides.get(name, []), *touched.get(name, [])])] for name in {**touched, **sides}}


def _pieces(label: np.ndarray) -> list[str]:
    """Report structures in more than one piece, due to stray strokes of an editor or the number of another structure."""
    found = []
    for channel, box in structure_boxes(label).items():
        pieces, count = connected(label[box] == channel, np.ones((3, 3, 3)))
        if count > 1:
            sizes = sorted(np.bincount(pieces.ravel())[1:].tolist(), reverse=True)
            found.append(f"{label_table()[channel].name} ({listed(sizes, SHOWN_PIECES)})")
    return [f"in several pieces (voxels): {', '.join(found)}"] if found else []
