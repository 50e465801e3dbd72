"""Reports on masks: of one that inference has just drawn, and of one that lies in a file."""

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

MASKED_SHARE = 3  # of the voxels of all structures: a map with values in fewer is blank around them; scans have ten times as many
SHOWN_PIECES = 3  # pieces of a structure in a warning


def fresh_report(pred: MetaTensor, scan: Volume, notes: Sequence[str]) -> dict[str, Any]:
    """How sure the names are, `structures` with volume, signal and measures, the measures of the `spine`, and `warnings`.

    Args:
        pred: mask that inference has drawn, channel indices, 1XYZ, with the `report` of `NameLevelsd` in its metadata.
        scan: as it is stored.
        notes: what its reader has said.
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
    """What `fresh_report` tells, of a mask in a file: what was said of its names before, and what can be measured now.

    Args:
        label: channel indices, shape XYZ.
        affine: 4x4, voxel -> world mm.
        scan: on the same grid; None: there are no signals, and what a blank border of it cuts is not known.
        label_scheme: of the numbers in the file.
        written: an earlier report on the very same mask, if there is one: how sure its names are, and what cuts its structures.
        before: a report on the mask before it was edited.

    Returns:
        the report, and the measures with the bodies that they were taken of.
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
    """What cuts the structures of a mask: faces that they touch, and the left and right ones that cut them before it was edited: between
    thick slices, the network had seen where they end."""
    turned, turned_affine = turned_to_ras(label, affine)
    view = view_box(turned_to_ras(scan.data, scan.affine)[0]) if scan else whole(turned.shape)
    if scan and np.count_nonzero(scan.data != scan.data.flat[0]) < MASKED_SHARE * np.count_nonzero(label):
        view = whole(turned.shape)  # a map that is blank around the structures does not tell where the scan has ended
    touched = cut_faces(view, (0, 0, 0), turned, voxel_sizes(turned_affine))
    sides = {name: [face for face in faces if face in SIDES] for name, faces in before.items()}
    return {name: [*dict.fromkeys([*sides.get(name, []), *touched.get(name, [])])] for name in {**touched, **sides}}


def _pieces(label: np.ndarray) -> list[str]:
    """A line for structures that are more than one piece: strokes of an editor that have gone astray, or another structure's number."""
    found = []
    for channel, box in structure_boxes(label).items():
        pieces, count = connected(label[box] == channel, np.ones((3, 3, 3)))
        if count > 1:
            sizes = sorted(np.bincount(pieces.ravel())[1:].tolist(), reverse=True)
            found.append(f"{label_table()[channel].name} ({listed(sizes, SHOWN_PIECES)})")
    return [f"in several pieces (voxels): {', '.join(found)}"] if found else []
