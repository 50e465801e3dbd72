"""A report on a mask that no network has just drawn, as inference writes one beside its masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from scripts.common.arrays import whole
from scripts.data.check_labels import order_problems
from scripts.data.volumes import Volume, turned_to_ras
from scripts.labels import label_table
from scripts.levels.cut import cut_faces, view_box
from scripts.measure.doubts import doubts
from scripts.measure.rows import structure_rows
from scripts.measure.spine import SpineMeasures, measure_spine


def report_on(
    label: np.ndarray, affine: np.ndarray, scan: Volume | None, label_scheme: str, of_names: Mapping[str, Any]
) -> tuple[dict[str, Any], SpineMeasures]:
    """`structures`, the measures of the `spine`, `warnings` about the mask, and what was said of the names before.

    Args:
        label: channel indices, shape XYZ.
        affine: 4x4, voxel -> world mm.
        scan: on the same grid; None: there are no signals, and what a blank border of it cuts is not known.
        label_scheme: of the numbers in the file.
        of_names: `sequence_probability` and `uncertain` of an earlier report, if there is one.

    Returns:
        the report, and the measures with the bodies that they were taken of.
    """
    turned, turned_affine = turned_to_ras(label, affine)
    view = view_box(turned_to_ras(scan.data, scan.affine)[0]) if scan else whole(turned.shape)
    cut = cut_faces(view, (0, 0, 0), turned, voxel_sizes(turned_affine))
    measures = measure_spine(label, affine, cut)
    found = [
        {"name": s.name, "cut_by_view": cut.get(s.name, []), "measures": measures.structures.get(s.name, {})} for s in label_table()[1:]
    ]
    report = {key: of_names.get(key) for key in ("sequence_probability", "uncertain")}
    report |= {"structures": structure_rows(found, label, affine, label_scheme, scan.data if scan else None), "spine": measures.spine}
    report["warnings"] = doubts(report) + order_problems(label, affine, label_scheme)
    if report["structures"] and not measures.bodies:
        report["warnings"].append("nothing could be measured: the view cuts every body, or there is none")
    return report, measures
