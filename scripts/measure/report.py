"""Reports on masks: of one that inference has just drawn, and of one that lies in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes

from scripts.common.arrays import whole
from scripts.data.check_labels import order_problems
from scripts.data.volumes import Volume, turned_to_ras
from scripts.labels import label_table
from scripts.levels.cut import cut_faces, view_box
from scripts.measure.doubts import doubts
from scripts.measure.rows import rounded, structure_rows
from scripts.measure.spine import SpineMeasures, measure_spine


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
    report["structures"] = structure_rows(report["structures"], pred[0].numpy(), pred.affine.numpy(), scheme, scan.data)
    return {**report, "warnings": [*notes, *doubts(report)]}


def report_on(
    label: np.ndarray, affine: np.ndarray, scan: Volume | None, label_scheme: str, written: Mapping[str, Any]
) -> tuple[dict[str, Any], SpineMeasures]:
    """What `fresh_report` tells, of a mask in a file: what was said of its names before, and what can be measured now.

    Args:
        label: channel indices, shape XYZ.
        affine: 4x4, voxel -> world mm.
        scan: on the same grid; None: there are no signals, and what a blank border of it cuts is not known.
        label_scheme: of the numbers in the file.
        written: an earlier report on the very same mask, if there is one: how sure its names are, and what cuts its structures.

    Returns:
        the report, and the measures with the bodies that they were taken of.
    """
    cut = {row["name"]: row.get("cut_by_view", []) for row in written.get("structures", [])}
    if not cut:
        turned, turned_affine = turned_to_ras(label, affine)
        view = view_box(turned_to_ras(scan.data, scan.affine)[0]) if scan else whole(turned.shape)
        cut = cut_faces(view, (0, 0, 0), turned, voxel_sizes(turned_affine))
    measures = measure_spine(label, affine, cut)
    found = [
        {"name": s.name, "cut_by_view": cut.get(s.name, []), "measures": measures.structures.get(s.name, {})} for s in label_table()[1:]
    ]
    report = {key: written.get(key) for key in ("sequence_probability", "uncertain")}
    report |= {"renamed": written["renamed"]} if "renamed" in written else {}
    report |= {"structures": structure_rows(found, label, affine, label_scheme, scan.data if scan else None), "spine": measures.spine}
    report["warnings"] = [*(scan.notes if scan else ()), *doubts(report), *order_problems(label, affine, label_scheme)]
    if report["structures"] and not measures.bodies:
        report["warnings"].append("nothing could be measured: the view cuts every body, or there is none")
    return report, measures
