"""What radiologists measure on a lumbar spine, from a label map: heights, wedging, discs, slips, lordosis, scoliosis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes

from scripts.common.arrays import occupied_box, structure_boxes, whole
from scripts.data.volumes import turned_to_ras, voxel_mm3
from scripts.labels import label_table
from scripts.levels.cut import SIDES, cut_faces
from scripts.measure.body import Body, EndPlate, measure_body

SACRUM = "S1"  # of which nothing but the superior end-plate is measured
MAX_DISC_MM = 20.0  # between facing end-plates: lumbar discs have up to 15 mm, where a vertebra is missing it is 30 mm and more
GRADES = (0.20, 0.25, 0.40)  # losses of height where Genant's grades 1, 2 and 3 begin (J Bone Miner Res 1993, 8:1137)
SPECK_MM3 = 300.0  # a smaller body is a stroke of an editor that has gone astray, and no neighbour of others
MIN_VIEW_MM = 5.0  # of the sacrum below its end-plate, for that to be in view as a whole
DIGITS = 2  # of what is returned


@dataclass(frozen=True)
class SpineMeasures:
    """What `measure_spine` finds."""

    structures: dict[str, dict[str, float]]  # by the name of the body or disc; one that could not be measured is not there
    spine: dict[str, float | str]
    bodies: dict[str, Body]  # by name, from top to bottom


def measure_spine(label: np.ndarray, affine: np.ndarray, cut: Mapping[str, Sequence[str]] | None = None) -> SpineMeasures:
    """Measure every body and disc, and the curves of the spine; in mm, degrees and shares.

    Everything is taken between the end-plates of bodies in their mid-sagittal slabs (`measure_body`). What the upper, lower, front or
    back face of the volume cuts is not measured, nor is what is no solid piece.

    A body has `anterior_`, `middle_` and `posterior_height_mm`; `depth_mm` of its superior end-plate; `wedge_deg` between its
    end-plates, positive if it is taller in front; unless too little of its width is in view, `coronal_deg`, positive if it rises to the
    right, and `axial_deg`, positive if its front is turned to the left; `height_loss` with
    `height_loss_grade` (see `height_loss`), a number, no diagnosis, for which Genant asks more than heights. On the next body below, it
    has `slip_mm`, the distance from that one's posterior rim to its own, positive to the front, and `slip_percent` of the end-plate below.

    A disc has three heights along the axis halfway between its end-plates, `angle_deg` between them, positive if it is taller in front,
    and `height_index`, the mean of the three divided by that of the middle heights of its two bodies, of L5 alone above the sacrum.

    The spine has `lordosis_deg` from the superior end-plate of L1 to that of S1, `lordosis_l1_l5_deg` to the inferior one of L5, and
    `cobb_deg`, the largest difference of two `coronal_deg`, with its `cobb_levels`. The planes are those of the scanner.

    Args:
        label: channel indices, shape XYZ, in any orientation.
        affine: 4x4, voxel -> world mm, RAS.
        cut: names of structures, with the faces of the view that cut them where the volume goes on.
    """
    bodies = _measured_bodies(*turned_to_ras(label, affine), cut or {}) if label.any() else {}
    structures = {name: _of_body(body) if name != SACRUM else {"depth_mm": body.superior.depth_mm} for name, body in bodies.items()}
    disc_below = {s.level: s.name for s in label_table() if s.is_disc}
    neighbours: dict[str, list[str]] = {name: [] for name in bodies}
    for (above, upper), (below, lower) in pairwise(bodies.items()):
        disc = _of_disc(upper, lower, [upper] if below == SACRUM else [upper, lower])
        if not 0 <= disc["middle_height_mm"] <= MAX_DISC_MM:
            continue
        structures[above] |= _slip(upper.inferior, lower.superior)
        if above in disc_below:
            structures[disc_below[above]] = disc
        if below != SACRUM:
            neighbours[above].append(below)
            neighbours[below].append(above)
    for name, beside in neighbours.items():
        if name != SACRUM:
            structures[name] |= height_loss(structures[name], [structures[n]["posterior_height_mm"] for n in beside])
    rounded = {name: {key: round(value, DIGITS) + 0 for key, value in row.items()} for name, row in structures.items()}
    return SpineMeasures(rounded, _of_spine(bodies), bodies)


def _measured_bodies(label: np.ndarray, affine: np.ndarray, known_cut: Mapping[str, Sequence[str]]) -> dict[str, Body]:
    """Bodies of a label map whose axes are those of RAS, from top to bottom."""
    occupied = occupied_box(label > 0)
    part = np.ascontiguousarray(label[occupied])  # what follows looks at every voxel several times
    start = [s.start for s in occupied]
    cut = cut_faces(whole(label.shape), start, part, voxel_sizes(affine))
    masks, affines = {}, {}
    for channel, box in structure_boxes(part).items():
        if (structure := label_table()[channel]).is_disc:
            continue
        mask = part[box] == channel
        if mask.sum() * voxel_mm3(affine) >= SPECK_MM3:
            masks[structure.name] = mask
            affines[structure.name] = affine @ from_matvec(np.eye(3), np.add(start, [b.start for b in box]))
    centres_mm = {name: apply_affine(affines[name], np.argwhere(mask).mean(0)) for name, mask in masks.items()}
    names, bodies = list(masks), {}
    for i, name in enumerate(names):
        above, below = names[max(i - 1, 0)], names[min(i + 1, len(names) - 1)]
        up = centres_mm[above] - centres_mm[below] if above != below else np.array([0.0, 0.0, 1.0])
        faces = {*cut.get(name, []), *known_cut.get(name, [])} - SIDES
        if faces - ({"inferior"} if name == SACRUM else set()):
            continue
        body = measure_body(masks[name], affines[name], up, name == SACRUM)
        if body and not (faces and _is_plate_cut(body, masks[name], affines[name])):
            bodies[name] = body
    return bodies


def _is_plate_cut(sacrum: Body, mask: np.ndarray, affine: np.ndarray) -> bool:
    """Whether the view ends within `MIN_VIEW_MM` below the superior end-plate; the lowest voxels of the mask are those of the view."""
    lowest_mm = apply_affine(affine, np.argwhere(mask[:, :, :1]))
    return bool(np.max((lowest_mm - sacrum.superior.middle_mm) @ sacrum.axes[:, 2]) > -MIN_VIEW_MM)


def _of_body(body: Body) -> dict[str, float]:
    heights = dict(zip(("anterior_height_mm", "middle_height_mm", "posterior_height_mm"), body.heights_mm()))
    wedge_deg = turned_deg(body.inferior.chord, body.superior.chord)
    angles = {"wedge_deg": wedge_deg}
    if body.is_turned:
        angles |= {"coronal_deg": coronal_deg(body.axes[:, 0]), "axial_deg": axial_deg(body.axes[:, 0])}
    return {**heights, "depth_mm": body.superior.depth_mm, **angles}


def _of_disc(upper: Body, lower: Body, whole_bodies: Sequence[Body]) -> dict[str, float]:
    normals = [np.cross(body.axes[:, 0], plate.chord) for body, plate in ((upper, upper.inferior), (lower, lower.superior))]
    axis = (normals[0] + normals[1]) / np.linalg.norm(normals[0] + normals[1])
    ends = ("anterior", "middle", "posterior")
    heights = [float(axis @ (getattr(upper.inferior, f"{end}_mm") - getattr(lower.superior, f"{end}_mm"))) for end in ends]
    angle = turned_deg(lower.superior.chord, upper.inferior.chord)
    of_bodies = [body.heights_mm()[1] for body in whole_bodies]
    return {
        **{f"{end}_height_mm": height for end, height in zip(ends, heights)},
        "angle_deg": angle,
        "height_index": float(np.mean(heights) / np.mean(of_bodies)),
    }


def _slip(upper: EndPlate, lower: EndPlate) -> dict[str, float]:
    slip_mm = float(lower.chord @ (upper.rim_mm - lower.rim_mm))
    return {"slip_mm": slip_mm, "slip_percent": 100 * slip_mm / lower.depth_mm}


def height_loss(row: Mapping[str, float], neighbours_mm: list[float]) -> dict[str, float]:
    """`height_loss`, 1 less the smallest of the ratios anterior / posterior, middle / posterior, and posterior / that of the neighbours,
    not below 0 and rounded; and `height_loss_grade`, 0 to 3, of that number.

    Args:
        row: the three heights of a body, in mm.
        neighbours_mm: posterior heights of the bodies beside it.
    """
    posterior = row["posterior_height_mm"]
    ratios = [row["anterior_height_mm"] / posterior, row["middle_height_mm"] / posterior]
    ratios += [posterior / float(np.mean(neighbours_mm))] if neighbours_mm else []
    loss = round(max(0.0, 1 - min(ratios)), DIGITS)  # what is graded is what stands beside the grade
    return {"height_loss": loss, "height_loss_grade": sum(loss >= grade for grade in GRADES)}


def _of_spine(bodies: Mapping[str, Body]) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for key, lowest, end in (("lordosis_deg", SACRUM, "superior"), ("lordosis_l1_l5_deg", "L5", "inferior")):
        if "L1" in bodies and lowest in bodies:
            found[key] = round(turned_deg(getattr(bodies[lowest], end).chord, bodies["L1"].superior.chord), DIGITS)
    tilts = {name: coronal_deg(body.axes[:, 0]) for name, body in bodies.items() if name != SACRUM and body.is_turned}
    if len(tilts) > 1:
        ends = max(tilts, key=tilts.get), min(tilts, key=tilts.get)
        found["cobb_deg"] = round(tilts[ends[0]] - tilts[ends[1]], DIGITS)
        found["cobb_levels"] = "-".join(name for name in tilts if name in ends)  # from top to bottom
    return found


def sagittal_deg(direction: np.ndarray) -> float:
    """Slope of a direction (3,) in the world's sagittal plane, positive if it rises to the front."""
    return float(np.rad2deg(np.arctan2(direction[2], direction[1])))


def turned_deg(start: np.ndarray, end: np.ndarray) -> float:
    """Angle in the world's sagittal plane from one direction (3,) to another, from -180 to less than 180; positive if `end` rises more."""
    return (sagittal_deg(end) - sagittal_deg(start) + 180) % 360 - 180


def coronal_deg(direction: np.ndarray) -> float:
    """Slope of a direction (3,) in the world's coronal plane, positive if it rises to the right."""
    return float(np.rad2deg(np.arctan2(direction[2], direction[0])))


def axial_deg(direction: np.ndarray) -> float:
    """Slope of a direction (3,) in the world's axial plane, positive if it turns to the front on the right."""
    return float(np.rad2deg(np.arctan2(direction[1], direction[0])))
