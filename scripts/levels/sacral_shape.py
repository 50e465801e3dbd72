"""Tell S1 from lumbar bodies by shape and position, which do not depend on the contrast."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.ndimage import find_objects

from scripts.levels.instances import Instance

SLAB_MM = 8.0  # to either side of the middle of a body: the slab in which its height is taken
MIDDLE = (10, 90)  # percentiles of the voxels from back to front between which heights are taken, because edges are round
MIN_COLUMNS = 5  # columns of voxels from back to front, for a slope of the height
USUAL_KINK = 0.35  # rad; in masks drawn on views of real scans, nine of ten S1 have 0.5 to 1.3, 96 % of the other bodies less than 0.2
NATS_PER_RAD = 8.0  # evidence for S1 per kink beyond the usual one
MAX_NATS = 3.0  # the shape must not outweigh the votes


def sacral_evidence(numbers: np.ndarray, bodies: Sequence[Instance], spacing_mm: Sequence[float], first_slice: int = 0) -> np.ndarray:
    """Return the evidence for S1, in nats, that the shape of every body gives.

    At the promontory the line through the centres turns backwards, and the body below it is lower in front than behind, while all lumbar
    bodies are higher in front. The sum of both angles, the kink, tells S1 from L5 in images that look like nothing in the training set.
    It never speaks against S1, because a torn or cut outline has lost its shape.

    Args:
        numbers: number of the body in every voxel, 0 elsewhere; shape XYZ, axes towards right, front and superior.
        bodies: vertebral bodies from top to bottom, numbered from 1.
        spacing_mm: voxel size.
        first_slice: lowest slice of the field of view, along the last axis.

    Returns:
        evidence, shape (bodies,). The two uppermost bodies, and a body that the lower end of the view cuts, get 0.
    """
    evidence = np.zeros(len(bodies))
    for i, box in enumerate(find_objects(numbers, max_label=len(bodies))):
        if i < 2 or box is None or box[2].start <= first_slice:
            continue
        centres = [bodies[k].centre_mm for k in (i - 2, i - 1, i)]
        above, here = (_lean(upper - lower) for upper, lower in pairwise(centres))
        voxels_mm = (np.argwhere(numbers[box] == i + 1) + [s.start for s in box]) * spacing_mm - centres[2]
        rise = _rise(voxels_mm[np.abs(voxels_mm[:, 0]) <= SLAB_MM], here, spacing_mm)
        if rise is not None:
            kink = here - above - np.arctan(rise)
            evidence[i] = np.clip(NATS_PER_RAD * (kink - USUAL_KINK), 0.0, MAX_NATS)
    return evidence


def _lean(line_mm: np.ndarray) -> float:
    """Return the angle in rad of an upward line (3,) from the vertical, positive to the front."""
    return float(np.arctan2(line_mm[1], line_mm[2]))


def _rise(voxels_mm: np.ndarray, lean: float, spacing_mm: Sequence[float]) -> float | None:
    """Return by how many mm a body gets higher per mm from back to front (least squares); None for too few voxels.

    Args:
        voxels_mm: positions of the voxels in a sagittal slab, (N, 3).
        lean: direction in which heights are taken, rad from the vertical, positive to the front.
        spacing_mm: voxel size.
    """
    if not len(voxels_mm):
        return None
    width_mm = max(spacing_mm[1:])  # width of the columns whose voxels are counted
    column = np.round((voxels_mm[:, 1] * np.cos(lean) - voxels_mm[:, 2] * np.sin(lean)) / width_mm).astype(int)
    low, high = np.percentile(column, MIDDLE).round().astype(int)
    if high - low + 1 < MIN_COLUMNS:
        return None
    counts = np.bincount(column - column.min())[low - column.min() : high + 1 - column.min()]
    slices = len(np.unique(voxels_mm[:, 0]))
    heights_mm = counts * (spacing_mm[1] * spacing_mm[2] / width_mm / slices)
    return float(np.polyfit(np.arange(low, high + 1) * width_mm, heights_mm, 1)[0])
