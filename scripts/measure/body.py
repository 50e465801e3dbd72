"""Measure one vertebral body from its voxels: its own axes, its end-plates and its heights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine
from scipy.ndimage import map_coordinates

STEP_MM = (3.0, 1.0, 1.0)  # distance of samples to the right, to the front and upwards
ROUNDS = 4  # times to sample along the axes, which are turned after all rounds but the last
END_OFFSET = 0.35  # share of the depth: anterior and posterior heights are taken so far from the middle, at 85 and 15 % of the depth
END_WINDOW = 0.06  # share of the depth: the surface is averaged so far to either side of such a place
SLAB = 1 / 6  # share of the width to either side of the middle: end-plates are taken in the central third
AXIAL_SLAB = 1 / 4  # share of the height to either side of the middle: the turn of a body about its axis is taken at its waist
MAX_TURN = 1.0  # slope of the walls from left to right: 45 degrees
WALL_BAND = (0.6, 0.8)  # share of the way from the centre to an end-plate where walls are taken, because corners of outlines are round
MAX_LEAN = 0.9  # sine of the largest angle to the left or right that the axis of a spine may have
MIN_MM = 1.5  # smallest distance from the centre of a body to its end-plates and walls
MIN_WIDTH_MM = 10.0  # about three slices of 4 mm; a narrower part is the border of a body and has no end-plates


@dataclass(frozen=True)
class EndPlate:
    """The superior or inferior surface of a body in its mid-sagittal slab; points are (3,), world mm."""

    posterior_mm: np.ndarray  # point at 15 % of the depth
    middle_mm: np.ndarray
    anterior_mm: np.ndarray  # point at 85 % of the depth
    rim_mm: np.ndarray  # where the line through the posterior and the anterior point meets the posterior wall
    depth_mm: float  # distance from the posterior to the anterior wall

    @property
    def chord(self) -> np.ndarray:
        """Return the unit vector (3,) from the posterior to the anterior point."""
        line = self.anterior_mm - self.posterior_mm
        return line / np.linalg.norm(line)


@dataclass(frozen=True)
class Body:
    """A vertebral body with its own axes: unit vectors to the right, to the front and upwards, columns of `axes` (3, 3), world."""

    axes: np.ndarray
    superior: EndPlate
    inferior: EndPlate
    is_turned: bool  # whether the axes follow its turn about its own axis; not so for half a body, which is too narrow, or a sacrum

    def heights_mm(self) -> tuple[float, float, float]:
        """Return the anterior, middle and posterior distance of the end-plates along the axis of the body."""
        places = ("anterior_mm", "middle_mm", "posterior_mm")
        return tuple(float(self.axes[:, 2] @ (getattr(self.superior, p) - getattr(self.inferior, p))) for p in places)


def measure_body(mask: np.ndarray, affine: np.ndarray, up: np.ndarray, upper_plate_alone: bool = False) -> Body | None:
    """Find the axes of a body and measure its end-plates along them.

    The axes are turned until the two end-plates rise by opposite angles, from back to front and from left to right, and the anterior
    and the posterior wall turn by opposite angles from left to right.

    Args:
        mask: boolean, shape XYZ.
        affine: 4x4, voxel -> world mm, RAS.
        up: approximate upward direction of the axis of the body, (3,).
        upper_plate_alone: put the axis at right angles to the superior end-plate and do not turn it; for the sacrum, whose inferior
            end-plate is fused.

    Returns:
        None if the mask is too small, hollow or only a narrow part of a body, or if `up` lies across the patient.
    """
    voxels = np.argwhere(mask)
    if not len(voxels):
        return None
    low, high = voxels.min(0), voxels.max(0) + 1
    part = np.pad(mask[tuple(map(slice, low, high))], 1).astype(np.float32)
    to_part = np.linalg.inv(affine)
    to_part[:3, 3] += 1 - low
    # the voxels that reach furthest in any direction lack a neighbour on one side
    inner = np.zeros_like(mask)
    inner[:, :, 1:-1] = mask[:, :, :-2] & mask[:, :, 2:]
    ends_mm, margin_mm = apply_affine(affine, np.argwhere(mask & ~inner)), np.abs(affine[:3, :3]).sum(1).max() / 2
    centre_mm = apply_affine(affine, voxels.mean(0))
    if abs(up[0]) > MAX_LEAN * np.linalg.norm(up):
        return None
    axes = _axes(np.array([1.0, 0.0, 0.0]), up)
    for turns_left in reversed(range(ROUNDS)):
        sections = _Sections.of(part, to_part, centre_mm, ends_mm, axes, margin_mm)
        plates = [sections.end_plate(side) for side in (1, -1)]
        if None in plates or sections.width_mm < MIN_WIDTH_MM:
            return None
        is_wide = sections.width_mm >= sections.depth_mm  # the axis of a narrower part would fall over to the side
        is_turned = is_wide and not upper_plate_alone
        if turns_left:
            local = [plate.chord @ axes for plate in plates]
            rises = np.array([(chord[2] / chord[1], sections.rise_to_right(side)) for chord, side in zip(local, (1, -1))])
            to_front, to_right = rises[0] if upper_plate_alone else rises.mean(0)
            if not is_wide:
                to_right = 0.0
            turn = sections.walls_to_right() if is_turned else 0.0
            right, front, upwards = axes.T
            right, front = right + to_right * upwards + turn * front, front + to_front * upwards
            axes = _axes(right, np.cross(right, front))
    return Body(axes, *plates, is_turned)


def _axes(right: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return orthonormal axes (3, 3), one along `up` and one as close to `right` as possible."""
    up = up / np.linalg.norm(up)
    right = right - (right @ up) * up
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(up, right), up], 1)


@dataclass(frozen=True)
class _Sections:
    """Three sections of a mask along the axes of a body.

    They are interpolated linearly, so that the sum of a row is its length to a fraction of a voxel.
    """

    centre_mm: np.ndarray  # (3,), world
    axes: np.ndarray
    right: np.ndarray  # mm from the centre, positions of the columns of the coronal section
    front: np.ndarray  # mm from the centre, positions of the columns of the sagittal section
    up: np.ndarray  # mm from the centre, positions of the rows of both; none is 0
    sagittal: np.ndarray  # mean over the central third from left to right, shape (front, up)
    coronal: np.ndarray  # mean over the central third from back to front, shape (right, up)
    axial: np.ndarray  # mean over the central half from below to above, shape (right, front)
    middle: float  # mm from the centre to the middle between the left and right border
    width_mm: float
    depth_mm: float

    @classmethod
    def of(
        cls, part: np.ndarray, to_part: np.ndarray, centre_mm: np.ndarray, ends_mm: np.ndarray, axes: np.ndarray, margin_mm: float
    ) -> _Sections:
        """Cut sections of `part` (float, XYZ); `to_part` (4x4) maps the world to its voxels, `ends_mm` (N, 3) are its outermost voxels."""
        reach = np.abs((ends_mm - centre_mm) @ axes).max(0) + margin_mm
        places = [step * (np.arange(-np.ceil(far / step), np.ceil(far / step)) + 0.5) for far, step in zip(reach, STEP_MM)]
        matrix, origin = to_part[:3, :3] @ axes, apply_affine(to_part, centre_mm)
        grid = [
            row[0] * places[0][:, None, None] + row[1] * places[1][:, None] + row[2] * places[2] + start
            for row, start in zip(matrix, origin)
        ]
        values = map_coordinates(part, grid, order=1)
        middle, width_mm = _extent(values.sum((1, 2)), places[0])
        in_depth, depth_mm = _extent(values.sum((0, 2)), places[1])
        slab = np.abs(places[0] - middle) <= max(SLAB * width_mm, STEP_MM[0] / 2)
        third = np.abs(places[1] - in_depth) <= max(SLAB * depth_mm, STEP_MM[1] / 2)
        waist, height_mm = _extent(values.sum((0, 1)), places[2])
        half = np.abs(places[2] - waist) <= max(AXIAL_SLAB * height_mm, STEP_MM[2] / 2)
        means = values[slab].mean(0), values[:, third].mean(1), values[:, :, half].mean(2)
        return cls(centre_mm, axes, *places, *means, middle, width_mm, depth_mm)

    def end_plate(self, side: int) -> EndPlate | None:
        """Measure the superior (`side` = 1) or inferior (-1) end-plate; None if it or a wall lies within `MIN_MM` of the centre."""
        levels = self._surface(self.sagittal, self.up, side)
        # heights of the plate at the posterior and the anterior wall, which are not known yet: rows half as high surely reach both
        ends = [0.5 * float(np.interp(0.0, self.front, levels))] * 2
        for _ in range(2):
            if min(map(abs, ends)) < MIN_MM:
                return None
            walls = [self._wall(sign, end) for sign, end in zip((-1, 1), ends)]
            if min(map(abs, walls)) < MIN_MM:
                return None
            depth_mm = walls[1] - walls[0]
            places = walls[0] + (0.5 + np.array([-END_OFFSET, 0.0, END_OFFSET])) * depth_mm
            reach = max(END_WINDOW * depth_mm, STEP_MM[1])
            heights = np.array([levels[np.abs(self.front - place) <= reach].mean() for place in places])
            rise = (heights[2] - heights[0]) / (places[2] - places[0])
            rims = [heights[0] + rise * (wall - places[0]) for wall in walls]
            # no higher than the middle of a hollow end-plate, above which no row is whole
            ends = [min(heights[1], rim, key=abs) for rim in rims]
        points_mm = [self.centre_mm + self.axes @ [self.middle, *point] for point in [*zip(places, heights), (walls[0], rims[0])]]
        return EndPlate(*points_mm, depth_mm)

    def _wall(self, sign: int, level: float) -> float:
        """Return where the anterior (`sign` = 1) or posterior (-1) wall lies just within an end-plate at `level`, mm from the centre."""
        rows = np.abs(self.up / level - np.mean(WALL_BAND)) <= max(np.ptp(WALL_BAND) / 2, 0.5 * STEP_MM[2] / abs(level))
        return float(sign * self.sagittal[sign * self.front > 0][:, rows].sum(0).mean() * STEP_MM[1])

    def rise_to_right(self, side: int) -> float:
        """Return the slope of an end-plate in the coronal section."""
        return self._slope(self._surface(self.coronal, self.up, side))

    def walls_to_right(self) -> float:
        """Return the mean slope, towards the front, of the anterior and the posterior wall in the axial section; at most `MAX_TURN`."""
        slopes = [self._slope(self._surface(self.axial, self.front, side)) for side in (1, -1)]
        return float(np.clip(np.mean(slopes), -MAX_TURN, MAX_TURN))

    def _slope(self, surface: np.ndarray) -> float:
        """Return the slope of a surface (right,), in mm, from left to right in the middle of the body."""
        near = np.abs(self.right - self.middle) <= max(END_OFFSET * self.width_mm, STEP_MM[0])
        return float(np.polyfit(self.right[near], surface[near], 1)[0])

    @staticmethod
    def _surface(section: np.ndarray, along: np.ndarray, side: int) -> np.ndarray:
        """Return where the surface on one side of the centre lies in every column of a section.

        The result is in mm along the last axis of the section, whose positions are `along`.
        """
        return side * section[:, side * along > 0].sum(1) * (along[1] - along[0])


def _extent(profile: np.ndarray, places: np.ndarray) -> tuple[float, float]:
    """Return the middle and the length of the part of a profile with at least half of its maximum."""
    inside = places[profile >= profile.max() / 2]
    return float(inside.mean()), float(np.ptp(inside) + places[1] - places[0])
