"""Compute the true measures of a phantom from the geometry that it was drawn from.

It shares no code with `scripts.measure.spine`, which is tested against it and computes its angles by itself.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from scripts.labels import label_table
from scripts.phantoms.anatomy import ENDS, Disc, Spine, Vertebra, sagittal_deg


def spine_truth(spine: Spine, complete: Collection[str]) -> dict[str, Any]:
    """Return the true measures of the drawn labels as plain numbers and arrays, lengths in mm and angles in degrees.

    `lordosis_deg` is the sagittal angle between the superior end-plates of L1 and S1, `scoliosis_deg` the largest coronal angle
    between two end-plates of complete vertebrae, `slip_mm` the anterior shift of the named level on the one below.
    `vertebrae` and `discs` hold the structures of the label table upwards; heights are those at 15, 50 and 85 % of the depth,
    along the superior axis of a body or the axis of a disc. Depth and width are those of the superior end-plate; at mid-height
    the share `waist` is missing.

    Args:
        spine: the drawn spine.
        complete: names of the vertebrae that the field of view does not cut.
    """
    named = [v for v in (spine.sacrum[0], *spine.column) if v.verse]
    coronal = [coronal_deg(v.axes[:, 0]) for v in named if v.name in complete]
    return {
        "lordosis_deg": sagittal_deg(spine["L1"].chord(1)) - sagittal_deg(spine["S1"].chord(1)),
        "scoliosis_deg": max(coronal) - min(coronal) if coronal else 0.0,
        "slip_mm": {d.upper.name: d.slip_mm for d in spine.discs if d.upper.verse},
        "vertebrae": [_vertebra_truth(v, v.name in complete) for v in named],
        "discs": [_disc_truth(d, d.lower.name in complete and d.upper.name in complete) for d in spine.discs if d.verse],
    }


def _vertebra_truth(v: Vertebra, complete: bool) -> dict[str, Any]:
    return {
        "name": v.name,
        "verse": v.verse,
        "complete": complete,
        "centre_mm": v.centre_mm,
        "anterior_height_mm": v.anterior_mm,
        "middle_height_mm": v.middle_mm,
        "posterior_height_mm": v.posterior_mm,
        "depth_mm": v.depth_mm,
        "width_mm": v.width_mm,
        "waist": v.waist,
        "wedge_deg": v.wedge_deg,
        "coronal_deg": coronal_deg(v.axes[:, 0]),
        "axial_deg": float(np.rad2deg(np.arctan2(v.axes[1, 0], v.axes[0, 0]))),
        "right": v.axes[:, 0],
        "anterior": v.axes[:, 1],
        "superior": v.axes[:, 2],
        "superior_end_plate_mm": v.end_plate_mm(1, 0.0),
        "inferior_end_plate_mm": v.end_plate_mm(-1, 0.0),
        "superior_chord": v.chord(1),
        "inferior_chord": v.chord(-1),
    }


def _disc_truth(disc: Disc, complete: bool) -> dict[str, Any]:
    return {
        # the name in the label table: the disc below L4 is L4/L5 even if L4 rests on the sacrum
        "name": {s.verse: s.name for s in label_table()}[disc.verse],
        "verse": disc.verse,
        "complete": complete,
        "anterior_height_mm": disc.height_mm(ENDS),
        "middle_height_mm": disc.height_mm(0.0),
        "posterior_height_mm": disc.height_mm(-ENDS),
        "angle_deg": disc.angle_deg,
        "degeneration": disc.degeneration,
    }


def coronal_deg(direction: np.ndarray) -> float:
    """Return the slope of a direction (3,) in the world's coronal plane, positive if it rises to the right."""
    return float(np.rad2deg(np.arctan2(direction[2], direction[0])))
