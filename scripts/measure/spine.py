"""Measure a lumbar spine as radiologists do, from a label map: heights, wedging, discs, slips, lordosis, scoliosis."""

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

SACRUM = "S1"  # only its superior end-plate is measured
MAX_DISC_MM = 20.0  # between facing end-plates: lumbar discs have up to 15 mm, gaps with a missing vertebra 30 mm and more
GRADES = (0.20, 0.25, 0.40)  # losses of height where Genant's grades 1, 2 and 3 begin (J Bone Miner Res 1993, 8:1137)
SPECK_MM3 = 300.0  # a smaller body is a stray stroke of an editor, and no neighbour of others
MIN_VIEW_MM = 5.0  # the end-plate of the sacrum is in view as a whole if this much below it is
DIGITS = 2  # decimals of all results


@dataclass(frozen=True)
class SpineMeasures:
    """The result of `measure_spine`."""

    structures: dict[str, dict[str, float]]  # by the name of the body or disc; those that could not be measured are left out
    spine: dict[str, float | str]
    bodies: dict[str, Body]  # by name, from top to bottom
    unmeasured: dict[str, str]  # name of a drawn body that was not measured -> the reason


def measure_spine(label: np.ndarray, affine: np.ndarray, cut: Mapping[str, Sequence[str]] | None = None) -> SpineMeasures:
    """Measure every body and disc, and the curves of the spine; in mm, degrees and shares.

    Everything is taken between the end-plates of bodies in their mid-sagittal slabs (`measure_body`). A body that the upper, lower, front
    or back face of the volume cuts is not measured, nor is one that is not a solid piece.

    A body has `anterior_`, `middle_` and `posterior_height_mm`; `depth_mm` of its superior end-plate; `wedge_deg` between its
    end-plates, positive if it is taller in front; unless too little of its width is in view, `coronal_deg`, positive if it rises to the
    right, and `axial_deg`, positive if its front is turned to the left; and `height_loss` with `height_loss_grade` (see `height_loss`),
    which is a number and no diagnosis, as Genant's grading needs more than heights. Relative to the next body below it has `slip_mm`, the
    distance from the posterior rim of that body to its own, positive to the front, and `slip_percent` of the depth of the end-plate below.

    A disc has three heights along the axis halfway between its end-plates, `angle_deg` between them, positive if it is taller in front,
    and `height_index`, the mean of the three divided by the mean middle height of its two bodies, or by that of L5 alone above the sacrum.

    The spine has `lordosis_deg` from the superior end-plate of L1 to that of S1, `lordosis_l1_l5_deg` to the inferior one of L5, and
    `cobb_deg`, the largest difference of two `coronal_deg`, with its `cobb_levels`. The planes are those of the scanner.

    Args:
        label: channel indices, shape XYZ, in any orientation.
        affine: 4x4, voxel -> world mm, RAS.
        cut: faces of the view, by name of structure, that cut it although the volume goes on.
    """
    bodies, unmeasured = _measured_bodies(*turned_to_ras(label, affine), cut or {}) if label.any() else ({}, {})
    structures = {name: _body_measures(body) if name != SACRUM else {"depth_mm": body.superior.depth_mm} for name, body in bodies.items()}
    disc_below = {s.level: s.name for s in label_table() if s.is_disc}
    neighbours: dict[str, list[str]] = {name: [] for name in bodies}
    for (above, upper), (below, lower) in pairwise(bodies.items()):
        disc = _disc_measures(upper, lower, [upper] if below == SACRUM else [upper, lower])
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
    return SpineMeasures(rounded, _spine_measures(bodies), bodies, unmeasured)


def _measured_bodies(
    label: np.ndarray, affine: np.ndarray, known_cut: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Body], dict[str, str]]:
    """Measure the bodies of a label map in RAS order.

    Returns:
        bodies by name, from top to bottom, and for the others the reason, where it is known, why they were not measured.
    """
    occupied = occupied_box(label > 0)
    part = np.ascontiguousarray(label[occupied])  # the steps below read every voxel several times
    start = [s.start for s in occupied]
    cut = cut_faces(whole(label.shape), start, part, voxel_sizes(affine))
    masks, affines, unmeasured = {}, {}, {}
    for channel, box in structure_boxes(part).items():
        if (structure := label_table()[channel]).is_disc:
            continue
        mask = part[box] == channel
        if mask.sum() * voxel_mm3(affine) >= SPECK_MM3:
            masks[structure.name] = mask
            affines[structure.name] = affine @ from_matvec(np.eye(3), np.add(start, [b.start for b in box]))
        else:
            unmeasured[structure.name] = f"smaller than {SPECK_MM3:.0f} mm³"
    centres_mm = {name: apply_affine(affines[name], np.argwhere(mask).mean(0)) for name, mask in masks.items()}
    names, bodies = list(masks), {}
    for i, name in enumerate(names):
        above, below = names[max(i - 1, 0)], names[min(i + 1, len(names) - 1)]
        up = centres_mm[above] - centres_mm[below] if above != below else np.array([0.0, 0.0, 1.0])
        faces = {*cut.get(name, []), *known_cut.get(name, [])} - SIDES
        reason = f"cut by the view ({', '.join(sorted(faces))})"
        if faces - ({"inferior"} if name == SACRUM else set()):
            unmeasured[name] = reason
            continue
        body = measure_body(masks[name], affines[name], up, name == SACRUM)
        if body and faces and _is_plate_cut(body, masks[name], affines[name]):
            unmeasured[name] = reason
        elif body:
            bodies[name] = body
        else:
            unmeasured[name] = "no solid piece"
    return bodies, unmeasured


def _is_plate_cut(sacrum: Body, mask: np.ndarray, affine: np.ndarray) -> bool:
    """Return True if the view ends, with the lowest voxels of the mask, less than `MIN_VIEW_MM` below the superior end-plate."""
    lowest_mm = apply_affine(affine, np.argwhere(mask[:, :, :1]))
    return bool(np.max((lowest_mm - sacrum.superior.middle_mm) @ sacrum.axes[:, 2]) > -MIN_VIEW_MM)


def _body_measures(body: Body) -> dict[str, float]:
    heights = dict(zip(("anterior_height_mm", "middle_height_mm", "posterior_height_mm"), body.heights_mm()))
    wedge_deg = turned_deg(body.inferior.chord, body.superior.chord)
    angles = {"wedge_deg": wedge_deg}
    if body.is_turned:
        angles |= {"coronal_deg": coronal_deg(body.axes[:, 0]), "axial_deg": axial_deg(body.axes[:, 0])}
    return {**heights, "depth_mm": body.superior.depth_mm, **angles}


def _disc_measures(upper: Body, lower: Body, whole_bodies: Sequence[Body]) -> dict[str, float]:
    normals = [np.cross(body.axes[:, 0], plate.chord) for body, plate in ((upper, upper.inferior), (lower, lower.superior))]
    axis = (normals[0] + normals[1]) / np.linalg.norm(normals[0] + normals[1])
    ends = ("anterior", "middle", "posterior")
    heights = [float(axis @ (getattr(upper.inferior, f"{end}_mm") - getattr(lower.superior, f"{end}_mm"))) for end in ends]
    angle = turned_deg(lower.superior.chord, upper.inferior.chord)
    middle_heights_mm = [body.heights_mm()[1] for body in whole_bodies]
    return {
        **{f"{end}_height_mm": height for end, height in zip(ends, heights)},
        "angle_deg": angle,
        "height_index": float(np.mean(heights) / np.mean(middle_heights_mm)),
    }


def _slip(upper: EndPlate, lower: EndPlate) -> dict[str, float]:
    slip_mm = float(lower.chord @ (upper.rim_mm - lower.rim_mm))
    return {"slip_mm": slip_mm, "slip_percent": 100 * slip_mm / lower.depth_mm}


def height_loss(row: Mapping[str, float], neighbours_mm: list[float]) -> dict[str, float]:
    """Return the `height_loss` of a body and its `height_loss_grade`, 0 to 3.

    The loss is 1 less the smallest of the ratios anterior / posterior, middle / posterior, and posterior / mean posterior height of the
    neighbours; it is not below 0, and rounded.

    Args:
        row: the three heights of a body, in mm.
        neighbours_mm: posterior heights of the bodies next to it.
    """
    posterior = row["posterior_height_mm"]
    ratios = [row["anterior_height_mm"] / posterior, row["middle_height_mm"] / posterior]
    ratios += [posterior / float(np.mean(neighbours_mm))] if neighbours_mm else []
    loss = round(max(0.0, 1 - min(ratios)), DIGITS)  # rounded before it is graded, so that the grade fits the number reported beside it
    return {"height_loss": loss, "height_loss_grade": sum(loss >= grade for grade in GRADES)}


def _spine_measures(bodies: Mapping[str, Body]) -> dict[str, float | str]:
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
    """Return the slope of a direction (3,) in the world's sagittal plane, positive if it rises to the front."""
    return float(np.rad2deg(np.arctan2(direction[2], direction[1])))


def turned_deg(start: np.ndarray, end: np.ndarray) -> float:
    """Return the sagittal angle from direction `start` to `end` (3,), in [-180, 180); positive if `end` rises more to the front."""
    return (sagittal_deg(end) - sagittal_deg(start) + 180) % 360 - 180


def coronal_deg(direction: np.ndarray) -> float:
    """Return the slope of a direction (3,) in the world's coronal plane, positive if it rises to the right."""
    return float(np.rad2deg(np.arctan2(direction[2], direction[0])))


def axial_deg(direction: np.ndarray) -> float:
    """Return the slope of a direction (3,) in the world's axial plane, positive if it turns to the front on the right."""
    return float(np.rad2deg(np.arctan2(direction[1], direction[0])))
