"""Which structures the view cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.common.arrays import structure_boxes
from scripts.labels import label_table

FACES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))  # of a grid in RAS order: first and last voxels of an axis
TOUCH_MM = 2.0  # a structure touches a face that is no further: outlines are rounded at the end of a view
SIDES = {"left", "right"}  # cut there alone, a structure is measured in the middle of what is in view
PADDED_RIM = 1  # voxels beside a blank border that count as border: masks end a little before it


def reported_cuts(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Name of each structure in a report -> faces of the view that cut it."""
    return {row["name"]: row.get("cut_by_view", []) for row in report.get("structures", [])}


def cut_faces(view: Sequence[slice], offset: Sequence[int], channel_map: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, list[str]]:
    """Structure -> faces of the view that it touches: within `TOUCH_MM`, or with the last slice but one along the spine.

    All in RAS order.

    Args:
        view: a box of a scan (`view_box`).
        offset: voxel of the scan at which `channel_map` begins.
        channel_map: channel indices, shape XYZ.
        spacing_mm: voxel size.
    """
    reach = [int(TOUCH_MM / s) for s in spacing_mm]
    reach[2] = max(1, reach[2])
    cut = {}
    for channel, box in structure_boxes(channel_map).items():
        first = [s.start + o for s, o in zip(box, offset)]
        last = [s.stop + o for s, o in zip(box, offset)]
        faces = [FACES[a][0] for a in range(3) if first[a] <= view[a].start + reach[a]]
        faces += [FACES[a][1] for a in range(3) if last[a] >= view[a].stop - reach[a]]
        if faces:
            cut[label_table()[channel].name] = faces
    return cut


def view_box(image: np.ndarray) -> tuple[slice, ...]:
    """What a scanner has seen of an image (XYZ), less `PADDED_RIM` where it ends before the image does."""
    box = seen_box(image)
    inner = [slice(s.start + PADDED_RIM * (s.start > 0), s.stop - PADDED_RIM * (s.stop < n)) for s, n in zip(box, image.shape)]
    return tuple(i if i.start < i.stop else s for i, s in zip(inner, box))


def seen_box(image: np.ndarray) -> tuple[slice, ...]:
    """What a scanner has seen of an image (XYZ): without the blank slices at its ends that padding, reslicing or masking leaves behind."""
    box = []
    for axis, size in enumerate(image.shape):
        slices = np.moveaxis(image, axis, 0)
        first = next((i for i in range(size) if np.ptp(slices[i])), 0)
        last = next((i for i in reversed(range(size)) if np.ptp(slices[i])), size - 1)
        box.append(slice(first, last + 1))
    return tuple(box)
