"""Find the structures that the border of the field of view cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.common.arrays import structure_boxes
from scripts.labels import label_table

# low and high face of each axis of a RAS grid
FACES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
TOUCH_MM = 2.0  # a structure this close to a face touches it, because outlines are rounded at the end of a view
SIDES = {"left", "right"}  # a structure cut only there is still measured, in the middle of the part in view
PADDED_RIM = 1  # voxels next to a blank border that count as part of it, because masks end a little before it


def reported_cuts(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Read from a report which faces of the view cut each structure: name -> faces."""
    return {row["name"]: row.get("cut_by_view", []) for row in report.get("structures", [])}


def cut_faces(view: Sequence[slice], offset: Sequence[int], channel_map: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, list[str]]:
    """Return the faces of the view that each structure touches: name -> faces.

    A structure touches a face if it comes within `TOUCH_MM` of it or, along the spine, reaches the last slice but one.

    Args:
        view: box of the scan in which something was seen, from `view_box`, in RAS order like all else here.
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
    """Return `seen_box` of an image (XYZ), less `PADDED_RIM` on each side where it ends before the image does."""
    box = []
    for seen, size in zip(seen_box(image), image.shape):
        start = seen.start + PADDED_RIM if seen.start > 0 else seen.start
        stop = seen.stop - PADDED_RIM if seen.stop < size else seen.stop
        box.append(slice(start, stop) if start < stop else seen)
    return tuple(box)


def seen_box(image: np.ndarray) -> tuple[slice, ...]:
    """Return the box of an image (XYZ) without the blank slices at its ends, which padding, reslicing or masking leave behind."""
    box = []
    for axis, size in enumerate(image.shape):
        slices = np.moveaxis(image, axis, 0)
        first = next((i for i in range(size) if np.ptp(slices[i])), 0)
        last = next((i for i in reversed(range(size)) if np.ptp(slices[i])), size - 1)
        box.append(slice(first, last + 1))
    return tuple(box)
