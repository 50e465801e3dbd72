"""Complete a partly labelled scan by geometry: a disc lies between two labelled bodies, and far from all of them there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from scipy import ndimage

from scripts.common.arrays import structure_boxes
from scripts.labels import label_table

UNKNOWN = 255  # may be anything
BEYOND = 254  # above the uppermost or below the lowest labelled level: an unlabelled structure may begin here
NO_BODY = 253  # background, or a disc that is not labelled
NO_DISC = 252  # background, or a body that is not labelled
STRUCTURES_END = NO_DISC  # values from here on are not channels
MARGIN_MM = 16.0  # margin of the box around a pair of neighbours
CERTAIN_COS = -0.92  # a voxel lies between two neighbours for certain if the directions to them are as opposite as this
POSSIBLE_COS = -0.1  # a voxel does not lie between two neighbours if the directions to them are less opposite than this
MAX_PATH = 1.6  # largest sum of the distances from a disc voxel to both neighbours, relative to the median of the candidates
RIM_MM = 1.5  # thickness of the end-plate between a body and its disc
BEYOND_RADIUS_MM = 55.0  # `BEYOND` reaches so far to the side of the axis of the last labelled level
BEYOND_RIM_MM = 2.0  # the next level begins at least so far from the last labelled one
FEW_VOXELS = 64  # a structure of fewer voxels has no reliable axes


def complete_labels(label: np.ndarray, labelled: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Add to a label map and to `labelled` what the geometry between labelled neighbours tells.

    - The disc between two neighbouring bodies: background voxels from which the nearest points of the two bodies lie in opposite directions
      become that disc; voxels around it and within `RIM_MM` of the bodies become `NO_BODY`. All other background near the pair holds no
      disc.
    - The body between two neighbouring discs: its sides are not certain, so all of it becomes `NO_DISC`.
    - Beyond the last labelled level: `BEYOND`, if a structure follows that is not labelled in this scan.
    - Between two labelled levels that are not neighbours: `UNKNOWN`, if a level between them is not labelled.

    Args:
        label: channel indices, shape XYZ, last axis towards superior.
        labelled: channels that are annotated in this scan, boolean, shape C.
        spacing_mm: voxel size.

    Returns:
        the completed label map and `labelled`.
    """
    result, known = label.astype(np.uint8), labelled.copy()
    boxes = structure_boxes(label)
    _mark_between_neighbours(result, known, label, boxes, spacing_mm)
    _mark_gaps_and_beyond(result, labelled, label, boxes, spacing_mm)
    return result, known


def _mark_between_neighbours(
    result: np.ndarray, known: np.ndarray, label: np.ndarray, boxes: Mapping[int, tuple[slice, ...]], spacing_mm: Sequence[float]
) -> None:
    """Mark discs, `NO_BODY` and `NO_DISC` of every pair of labelled neighbours in `result`, and the discs in `known` too."""
    table = label_table()
    with_l6 = any(s.name == "L6" and s.channel in boxes for s in table)
    for above, below, between in _neighbours(with_l6):
        if known[between] or above not in boxes or below not in boxes:
            continue
        box = _joint_box(boxes[above], boxes[below], label.shape, spacing_mm)
        cosine, path_mm, nearest_mm = _look_at_both(label[box] == above, label[box] == below, spacing_mm)
        free = label[box] == 0
        result[box][free & ndimage.binary_dilation(cosine < POSSIBLE_COS)] = NO_BODY if table[between].is_disc else NO_DISC
        if table[between].is_disc:
            certain = free & (cosine < CERTAIN_COS)
            if certain.any():  # beside a body, one neighbour can also lie straight above and the other below, but far away
                certain &= path_mm < MAX_PATH * np.median(path_mm[certain])
            certain &= nearest_mm > RIM_MM
            result[box][certain] = between
            known[between] = True


def _mark_gaps_and_beyond(
    result: np.ndarray, labelled: np.ndarray, label: np.ndarray, boxes: Mapping[int, tuple[slice, ...]], spacing_mm: Sequence[float]
) -> None:
    """Mark `UNKNOWN` between labelled levels that are not neighbours, and `BEYOND` above the uppermost and below the lowest one."""
    table = label_table()
    listed = {s.name for s in table if labelled[s.channel]}
    for kind in ("body", "disc"):
        present = [c for c in boxes if table[c].kind == kind and labelled[c]]
        # with S1 labelled, an L6 would be labelled too: there is none
        without_l6 = "S1" in listed and not any(name.startswith("L6") for name in listed)
        every = [s.channel for s in table if s.kind == kind and not (without_l6 and s.name.startswith("L6"))]
        if not present:
            continue
        for above, below in pairwise(present):
            if not labelled[every[every.index(above) : every.index(below)]].all():
                box = _joint_box(boxes[above], boxes[below], label.shape, spacing_mm)
                cosine = _look_at_both(label[box] == above, label[box] == below, spacing_mm)[0]
                result[box][(result[box] == 0) & ndimage.binary_dilation(cosine < POSSIBLE_COS)] = UNKNOWN
        # at either end: the last structure, the one before it (itself if it is the only one), and the way on in the table
        for last, second, step in ((present[-1], present[-2:][0], 1), (present[0], present[:2][-1], -1)):
            follows = every.index(last) + step
            if 0 <= follows < len(every) and not labelled[every[follows]]:
                _mark_beyond(result, label, last, second, -step, spacing_mm)


def _neighbours(with_l6: bool) -> list[tuple[int, int, int]]:
    """Return (upper, lower, between) for neighbouring bodies and neighbouring discs; the disc below L5 is always L5/S1."""
    table = label_table()
    by_name = {s.name: s.channel for s in table}
    triples = []
    for disc in (s for s in table if s.is_disc):
        upper, lower = disc.name.split("/")
        if upper == "L5" and with_l6:
            lower = "L6"
        triples.append((by_name[upper], by_name[lower], disc.channel))
        for following in (s for s in table if s.is_disc and s.name.startswith(lower + "/")):
            triples.append((disc.channel, following.channel, by_name[lower]))
    return triples


def _joint_box(a: tuple[slice, ...], b: tuple[slice, ...], shape: tuple[int, ...], spacing_mm) -> tuple[slice, ...]:
    margin = [int(np.ceil(MARGIN_MM / s)) for s in spacing_mm]
    return tuple(slice(max(0, min(p.start, q.start) - m), min(n, max(p.stop, q.stop) + m)) for p, q, m, n in zip(a, b, margin, shape))


def _look_at_both(a: np.ndarray, b: np.ndarray, spacing_mm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what each voxel sees of the nearest points of `a` and `b`.

    Returns:
        the cosine of the angle between the directions to both, the sum of the distances, and the shorter distance.
    """
    here = np.indices(a.shape, dtype=np.float32)
    scale = np.array(spacing_mm, np.float32).reshape(3, 1, 1, 1)
    to = []
    for mask in (a, b):
        nearest = ndimage.distance_transform_edt(~mask, sampling=spacing_mm, return_distances=False, return_indices=True)
        to.append((nearest - here) * scale)
    distances = [np.linalg.norm(t, axis=0) for t in to]
    norm = distances[0] * distances[1]
    return np.where(norm > 0, (to[0] * to[1]).sum(0) / np.maximum(norm, 1e-6), 1.0), distances[0] + distances[1], np.minimum(*distances)


def _mark_beyond(result: np.ndarray, label: np.ndarray, last: int, second: int, upwards: int, spacing_mm) -> None:
    """Mark the background behind the far end of `last`, seen from `second`.

    Next to that end there is certainly no more structure of the kind of `last`. If both are the same structure, the only one of its kind,
    the end is the upper one for `upwards` = 1 and the lower one for -1.
    """
    scale = np.array(spacing_mm)
    points = np.argwhere(label == last) * scale
    centre, before = points.mean(0), np.argwhere(label == second).mean(0) * scale
    apart_mm = np.linalg.norm(centre - before)  # 0 if the centres coincide, then neither lies above the other
    step = (centre - before) / apart_mm if last != second and apart_mm > 0 else np.array([0.0, 0.0, upwards])
    normal = step
    if len(points) >= FEW_VOXELS:
        principal = np.linalg.svd((points - centre)[:: max(1, len(points) // 2000)], full_matrices=False)[2]
        normal = principal[np.abs(principal @ step).argmax()]
        normal = normal * np.sign(normal @ step)
    end = np.percentile((points - centre) @ normal, 97)
    grid = np.indices(label.shape, dtype=np.float32).reshape(3, -1).T * scale.astype(np.float32) - centre.astype(np.float32)
    along = grid @ normal.astype(np.float32)
    across = np.sqrt(np.maximum((grid**2).sum(1) - along**2, 0))
    behind = ((along > end - 1) & (across < BEYOND_RADIUS_MM)).reshape(label.shape)
    near = (along < end + BEYOND_RIM_MM).reshape(label.shape)
    free = behind & (label == 0) & (result == 0)
    result[free & near] = NO_DISC if label_table()[last].is_disc else NO_BODY
    result[free & ~near] = BEYOND
