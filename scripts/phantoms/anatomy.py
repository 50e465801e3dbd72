"""Build the geometry of the phantom's spine.

World coordinates are RAS millimetres. A vertebral body has its own frame with the axes right, anterior and superior (columns of
`axes`) and the relative positions u = anterior coordinate / depth and v = right coordinate / width, both -0.5 to 0.5.
The body is bounded by two end-plates at plus and minus half its height

    h(u, v) = middle + (anterior - posterior) * u / 0.7 + concavity * (u^2 + v^2) / 0.35^2

so that the heights at 15, 50 and 85 % of the depth in the mid-sagittal plane (u = 0.35, 0, -0.35) are exactly `anterior_mm`,
`middle_mm` and `posterior_mm`. All truth is computed from these surfaces, never from the inputs of the chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from scripts.common.errors import CallError
from scripts.common.knobs import is_number
from scripts.labels import label_table

ENDS = 0.35  # heights are defined at u = +-ENDS: 15 % and 85 % of the depth
MIN_RIM_GAP_MM = 1.5  # end-plates of neighbours never come closer than this at the rim
S1_CENTRE_MM = np.array([0.0, -10.0, -95.0])  # centre of its superior end-plate, which puts L3 near the isocentre of the scanner

# Population means counted upwards from the vertebra above S1 (L5, L4, ... T12, ... T5), all in mm and degrees:
# anterior height, posterior height, concavity, depth, width, height and angle of the disc below
LEVEL_MEANS = np.array([
    [27.5, 24.0, 1.8, 35.0, 51.0, 10.5, 15.0],  # L5
    [27.0, 26.5, 1.8, 35.0, 48.5, 11.0, 12.0],  # L4
    [27.0, 27.5, 1.8, 34.5, 46.5, 10.2, 8.5],  # L3
    [26.5, 27.5, 1.7, 33.5, 44.5, 9.2, 6.5],  # L2
    [25.5, 27.0, 1.6, 32.5, 43.0, 8.2, 4.5],  # L1
    [23.7, 25.5, 1.4, 31.5, 41.5, 6.8, 2.5],  # T12
    [21.7, 23.5, 1.2, 31.0, 39.0, 5.8, 1.0],  # T11
    [20.6, 22.0, 1.1, 30.0, 36.5, 5.2, 0.0],  # T10
    [19.9, 21.0, 1.0, 29.0, 34.5, 4.8, -0.5],  # T9
    [19.3, 20.3, 0.9, 28.0, 33.0, 4.5, -1.0],  # T8
    [18.8, 19.8, 0.9, 27.0, 32.0, 4.3, -1.0],  # T7
    [18.3, 19.2, 0.8, 26.0, 31.0, 4.2, -1.0],  # T6
    [17.7, 18.5, 0.8, 25.0, 30.0, 4.0, -1.0],  # T5
])  # fmt: skip
# S1 to S4: anterior height, posterior height, concavity, depth, width at the upper end, taper towards the lower end
SACRUM_MEANS = np.array([
    [30.0, 26.0, 0.8, 33.0, 50.0, 0.28],
    [24.0, 22.0, 0.3, 23.0, 38.0, 0.25],
    [20.0, 18.0, 0.2, 17.0, 30.0, 0.25],
    [17.0, 16.0, 0.2, 13.0, 24.0, 0.25],
])  # fmt: skip
SACRAL_KYPHOSIS_DEG = 13.0  # per segment
SCOLIOSIS_ENDS = ((0, 2), (5, 7))  # ranges of the end vertebrae, counted as above: lower one L5 to L3, upper one T12 to T10
STRAIGHT_AGAIN = 4  # levels above the upper end vertebra where the spine is upright again
AXIAL_SHARE = 0.35  # share of the Cobb angle by which the vertebra at the apex is turned to the convex side
MAX_COBB_DEG = 60.0  # largest Cobb angle of a phantom
CANAL_MM = (12.0, 8.5)  # half width and half depth of the spinal canal
CURVE_STEP_MM = 0.25  # resolution of curves that are tabulated over world z


@dataclass(frozen=True)
class Vertebra:
    """One vertebral body; the module's docstring defines its frame and its surfaces."""

    name: str
    centre_mm: np.ndarray  # (3,)
    axes: np.ndarray  # (3, 3), columns: right, anterior, superior
    anterior_mm: float
    middle_mm: float
    posterior_mm: float
    depth_mm: float  # at the superior end-plate
    width_mm: float  # at the superior end-plate
    waist: float = 0.08  # the cross-section at mid-height is smaller by this share
    taper: float = 0.0  # the cross-section at the inferior end-plate is smaller by this share (sacrum)

    @cached_property
    def wedge_deg(self) -> float:
        """Return the angle between the end-plates in the mid-sagittal plane, positive if the body is taller anteriorly."""
        return float(np.rad2deg(2 * np.arctan((self.anterior_mm - self.posterior_mm) / (4 * ENDS * self.depth_mm))))

    @property
    def concavity_mm(self) -> float:
        return (self.anterior_mm + self.posterior_mm) / 2 - self.middle_mm

    def height_mm(self, u: np.ndarray | float, v: np.ndarray | float = 0.0) -> Any:
        """Return the distance between the end-plates along the superior axis."""
        slope = (self.anterior_mm - self.posterior_mm) / (2 * ENDS)
        return self.middle_mm + slope * u + self.concavity_mm / ENDS**2 * (u * u + v * v)

    def end_plate_mm(self, side: int, u: float) -> np.ndarray:
        """Return the world position (3,) on the superior (`side` = 1) or inferior (-1) end-plate in the mid-sagittal plane."""
        return self.centre_mm + self.axes @ np.array([0.0, u * self.depth_mm, side * self.height_mm(u) / 2])

    def chord(self, side: int) -> np.ndarray:
        """Return the unit vector (3,) along an end-plate from its posterior (15 %) to its anterior (85 %) point."""
        chord = self.end_plate_mm(side, ENDS) - self.end_plate_mm(side, -ENDS)
        return chord / np.linalg.norm(chord)

    def posterior_corner_mm(self, side: int) -> np.ndarray:
        """Return the world position (3,) of the posterior rim of an end-plate."""
        return self.end_plate_mm(side, -0.5 * (1 - self.taper * (side < 0)))

    @property
    def verse(self) -> int:
        """Return the VerSe number, 0 for a vertebra outside the label table."""
        return {s.name: s.verse for s in label_table()}.get(self.name, 0)


@dataclass(frozen=True)
class Disc:
    """The space between the facing end-plates of two neighbours."""

    lower: Vertebra
    upper: Vertebra
    degeneration: float  # 0 = bright nucleus and full height, 1 = dark and flat

    @property
    def verse(self) -> int:
        """Return the VerSe number, 0 for a disc outside the label table."""
        number = 100 + self.upper.verse
        return number if number in {s.verse for s in label_table()} else 0

    @cached_property
    def axis(self) -> np.ndarray:
        """Return the unit vector (3,) halfway between the normals of the two end-plates."""
        normals = [np.cross(v.axes[:, 0], v.chord(side)) for v, side in ((self.lower, 1), (self.upper, -1))]
        return (normals[0] + normals[1]) / np.linalg.norm(normals[0] + normals[1])

    def height_mm(self, u: float) -> float:
        """Return the distance along the axis of the disc between the points of the facing end-plates at relative position `u`."""
        return float(self.axis @ (self.upper.end_plate_mm(-1, u) - self.lower.end_plate_mm(1, u)))

    @property
    def angle_deg(self) -> float:
        """Return the sagittal angle between the end-plates, positive if the disc is taller anteriorly."""
        return sagittal_deg(self.upper.chord(-1)) - sagittal_deg(self.lower.chord(1))

    @property
    def slip_mm(self) -> float:
        """Return how far the posterior corner of the upper vertebra is in front of that of the lower one, along the lower end-plate."""
        step = self.upper.posterior_corner_mm(-1) - self.lower.posterior_corner_mm(1)
        return float(self.lower.chord(1) @ step)


@dataclass(frozen=True)
class Spine:
    """All vertebrae and discs of a phantom."""

    sacrum: tuple[Vertebra, ...]  # S1, S2, S3, S4
    column: tuple[Vertebra, ...]  # upwards from the lowest lumbar vertebra
    discs: tuple[Disc, ...]  # discs[i] lies below column[i]

    @property
    def vertebrae(self) -> tuple[Vertebra, ...]:
        """Return all vertebrae upwards from S4."""
        return self.sacrum[::-1] + self.column

    def __getitem__(self, name: str) -> Vertebra:
        return {v.name: v for v in self.vertebrae}[name]

    def level_mm(self, name: str) -> float:
        """Return the world z of the centre of a vertebra, as a plain float so that the float32 arrays of the renderer stay float32."""
        return float(self[name].centre_mm[2])


def rotation(axis: int, degrees: float) -> np.ndarray:
    """Return the matrix (3, 3) of a right-handed rotation about x (0), y (1) or z (2); about x it lifts the anterior edge."""
    sine, cosine = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[i, i] = matrix[j, j] = cosine
    matrix[i, j], matrix[j, i] = -sine, sine
    return matrix


def turn(degrees: np.ndarray) -> np.ndarray:
    """Return the matrix (3, 3) of rotations about x, y and z, in this order in the moving frame."""
    return rotation(0, degrees[0]) @ rotation(1, degrees[1]) @ rotation(2, degrees[2])


def sagittal_deg(direction: np.ndarray) -> float:
    """Return the slope of a direction (3,) in the world's sagittal plane, positive if it rises anteriorly."""
    return float(np.rad2deg(np.arctan2(direction[2], direction[1])))


def level_names(lumbar: int) -> list[str]:
    """Return the names of the vertebrae above the sacrum, upwards from the lowest lumbar one."""
    names = [f"L{i}" for i in range(lumbar, 0, -1)] + [f"T{i}" for i in range(12, 0, -1)]
    return names[: len(LEVEL_MEANS)]


def build_spine(
    rng: np.random.Generator,
    *,
    lumbar: int = 5,
    wedged: Mapping[str, float] | None = None,
    slipped: Mapping[str, float] | None = None,
    scoliosis: float = 0.0,
) -> Spine:
    """Draw a spine. The options only change what they name, because all random numbers are drawn in any case.

    Args:
        rng: source of the size and curvature of the patient and of the jitter of every level.
        lumbar: number of lumbar vertebrae: 4, 5 or 6.
        wedged: share of the anterior height that a level has lost.
        slipped: anterior shift in mm of a level on the one below; all levels above move along.
        scoliosis: Cobb angle in degrees that a thoracolumbar curve adds, positive if it is convex to the left.

    Raises:
        CallError: for an impossible number of lumbar vertebrae, an unknown level, an impossible loss of height or Cobb angle.
    """
    if lumbar not in (4, 5, 6):
        raise CallError(f"lumbar = {lumbar}: a phantom has 4, 5 or 6 lumbar vertebrae")
    for option, value in (("wedged", wedged), ("slipped", slipped)):
        if value and not (isinstance(value, Mapping) and all(map(is_number, value.values()))):
            raise CallError(f"{option} = {value}: a number for every level is needed, such as {{'L1': 0.3}}")
    names, wedged, slipped = level_names(lumbar), wedged or {}, slipped or {}
    if unknown := sorted((set(wedged) | set(slipped)) - set(names)):
        raise CallError(f"wedged/slipped: no vertebra {', '.join(unknown)} in a phantom with {lumbar} lumbar vertebrae")
    if any(not 0 <= loss < 0.8 for loss in wedged.values()):
        raise CallError(f"wedged = {dict(wedged)}: the share of the anterior height that is lost must lie in [0, 0.8)")

    if not (is_number(scoliosis) and abs(scoliosis) <= MAX_COBB_DEG):
        raise CallError(f"scoliosis = {scoliosis}: a phantom has a Cobb angle from {-MAX_COBB_DEG:g} to {MAX_COBB_DEG:g} degrees")

    means, degeneration, tilts_deg = _draw_levels(rng)
    stature = np.exp(rng.normal(0, 0.06))
    slips_mm = rng.normal(0, 0.5, len(names))
    # the sacrum tilts with the lordosis, so that the trunk stays upright
    wedges_deg = np.rad2deg(2 * np.arctan((means[:5, 0] - means[:5, 1]) / (4 * ENDS * means[:5, 3])))
    sacral_slope_deg = np.clip(means[:5, 6].sum() + wedges_deg.sum() - rng.normal(9, 3.5), 15, 62)
    pose = turn(np.array([-sacral_slope_deg, *rng.normal(0, 1.0, 2)]))
    sacrum = _build_sacrum(pose, stature, stature * np.exp(rng.normal(0, 0.04)))
    leans_deg = _scoliotic_leans(rng, scoliosis)

    below, column, discs = sacrum[0], [], []
    for i, name in enumerate(names):
        anterior, posterior, concavity, depth, width, gap = (stature * means[i, :6]).tolist()
        anterior *= 1 - wedged.get(name, 0.0)
        middle = (anterior + posterior) / 2 - concavity
        body = Vertebra(name, np.zeros(3), np.eye(3), anterior, middle, posterior, depth, width)
        body = _stack(below, body, gap, tilts_deg[i], slipped.get(name, slips_mm[i]), leans_deg[i : i + 2])
        discs.append(Disc(below, body, float(degeneration[i])))
        column.append(body)
        below = body
    return Spine(sacrum, tuple(column), tuple(discs))


def _draw_levels(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the sizes (13, 7) of the levels like LEVEL_MEANS, and the degeneration (13,) and the tilts in degrees (13, 3) of the discs."""
    count = len(LEVEL_MEANS)
    means = LEVEL_MEANS * np.exp(rng.normal(0, 1, LEVEL_MEANS.shape) * [0.025, 0.02, 0.25, 0.02, 0.02, 0.07, 0.0])
    # lumbar discs wear, the lowest two most
    wear = np.r_[0.45, 0.45, 0.3, 0.25, 0.2, np.full(count - 5, 0.15)]
    degeneration = np.clip(wear + rng.normal(0, 0.15) + rng.normal(0, 0.25, count), 0, 1)
    means[:, 5] *= 1 - 0.4 * degeneration
    means[:, 6] = means[:, 6] * np.exp(rng.normal(0, 0.15)) + rng.normal(0, 1.2, count)
    curve_deg = 1.2 * rng.normal() * np.sin(np.arange(count) * rng.uniform(0.4, 0.8) + rng.uniform(0, 6))
    tilts_deg = np.c_[means[:, 6], curve_deg + rng.normal(0, 0.5, count), curve_deg / 2 + rng.normal(0, 0.4, count)]
    return means, degeneration, tilts_deg


def _scoliotic_leans(rng: np.random.Generator, cobb_deg: float) -> np.ndarray:
    """Return the degrees (14, 2) by which a scoliosis turns S1, which stays upright, and every level above it about y and z of the world.

    The lower end vertebra leans by half of the angle to the convex side, the upper one by the other half to the concave side. Between
    them all discs share the angle, and the vertebrae turn to the convex side, most of all at the apex.
    """
    lower, upper = (int(rng.integers(*ends, endpoint=True)) for ends in SCOLIOSIS_ENDS)
    levels = np.arange(-1, len(LEVEL_MEANS))  # from S1 on, which stays upright
    coronal = np.interp(levels, [-1, lower, upper, upper + STRAIGHT_AGAIN], [0, -cobb_deg / 2, cobb_deg / 2, 0])
    axial = np.interp(levels, [lower - 1, (lower + upper) / 2, upper + 1], [0, AXIAL_SHARE * cobb_deg, 0])
    return np.c_[coronal, axial]


def _build_sacrum(pose: np.ndarray, height_scale: float, width_scale: float) -> tuple[Vertebra, ...]:
    """Build S1 to S4, downwards from the superior end-plate of S1, whose frame is `pose` (3, 3)."""
    segments: list[Vertebra] = []
    for i, (anterior, posterior, concavity, depth, width, taper) in enumerate(SACRUM_MEANS):
        heights = (height_scale * np.array([anterior, (anterior + posterior) / 2 - concavity, posterior])).tolist()
        size = (width_scale * np.array([depth, width])).tolist()
        body = Vertebra(f"S{i + 1}", np.zeros(3), np.eye(3), *heights, *size, waist=0.04, taper=float(taper))
        half = rotation(0, body.wedge_deg / 2)
        axes = pose @ half.T
        body = replace(body, axes=axes)
        if segments:  # the posterior walls are continuous across a 2 mm remnant of the disc
            gap_mm = segments[-1].axes[:, 2] * 2.0
            step = segments[-1].posterior_corner_mm(-1) - gap_mm - body.posterior_corner_mm(1)
        else:
            step = S1_CENTRE_MM - body.end_plate_mm(1, 0.0)
        segments.append(replace(body, centre_mm=step))
        pose = axes @ half.T @ rotation(0, SACRAL_KYPHOSIS_DEG)
    return tuple(segments)


def _stack(below: Vertebra, body: Vertebra, gap_mm: float, tilt_deg: np.ndarray, slip_mm: float, leans_deg: np.ndarray) -> Vertebra:
    """Put `body` on `below` with a disc of the given middle height and tilt (about x, y, z) between them.

    A scoliosis turns them both by their `leans_deg` (2, 2), about y and z of the world.
    """
    rim_mm = [(v.height_mm(0.5, 0.25) + v.height_mm(-0.5, 0.25)) / 4 - v.middle_mm / 2 for v in (below, body)]
    closing_deg = abs(tilt_deg[0]), abs(tilt_deg[1]) + abs(leans_deg[1, 0] - leans_deg[0, 0])
    closing_mm = np.tan(np.deg2rad(closing_deg)) @ [body.depth_mm / 2, body.width_mm / 2]
    gap_mm = max(gap_mm, sum(rim_mm) + closing_mm + MIN_RIM_GAP_MM)

    pose = below.axes @ rotation(0, below.wedge_deg / 2)
    before, halfway, lean = (rotation(1, y) @ rotation(2, z) for y, z in (leans_deg[0], leans_deg.mean(0), leans_deg[1]))
    axes = lean @ before.T @ pose @ turn(tilt_deg) @ rotation(0, body.wedge_deg / 2)
    half = halfway @ before.T @ pose @ turn(tilt_deg / 2)
    centre_mm = below.end_plate_mm(1, 0.0) + half[:, 2] * gap_mm + axes[:, 2] * body.middle_mm / 2
    # the slip is linear in a shift along the disc
    body = replace(body, axes=axes, centre_mm=centre_mm)
    unshifted_mm = Disc(below, body, 0.0).slip_mm
    shift_mm = (slip_mm - unshifted_mm) / (half[:, 1] @ pose[:, 1])
    return replace(body, centre_mm=centre_mm + half[:, 1] * shift_mm)


@dataclass(frozen=True)
class Curves:
    """Positions in mm that follow the spine, tabulated over world z in steps of CURVE_STEP_MM from `start_mm`."""

    start_mm: float
    canal_x: np.ndarray
    canal_y: np.ndarray
    canal_cosine: np.ndarray  # cosine of the slope of the canal: sagittal distances across it are shorter than those along y
    front_y: np.ndarray  # anterior surface of the bodies
    back_y: np.ndarray  # skin of the back in the midline
    belly_y: np.ndarray  # skin of the belly in the midline

    @staticmethod
    def along(spine: Spine, rng: np.random.Generator) -> Curves:
        z = np.arange(-400.0, 500.0, CURVE_STEP_MM)
        back, front = [], []
        for v in spine.vertebrae:
            for side in (-1, 1):
                back.append(v.posterior_corner_mm(side) - v.axes[:, 1] * (CANAL_MM[1] + 1.0))
            front.append(v.centre_mm + v.axes[:, 1] * v.depth_mm / 2)
        back, front = (np.array(sorted(p, key=lambda point: point[2])) for p in (back, front))

        def smooth(points: np.ndarray, axis: int, sigma_mm: float) -> np.ndarray:
            return gaussian_filter1d(np.interp(z, points[:, 2], points[:, axis]), sigma_mm / CURVE_STEP_MM)

        canal_x, canal_y = smooth(back, 0, 5.0), smooth(back, 1, 3.0)
        level = z - spine.level_mm("L3")
        # the lordotic hollow of the back is shallower than that of the spine
        depth_mm = rng.uniform(54, 64) - 20 / (1 + np.exp((level + 90) / 12))
        back_y = smooth(back, 1, 30.0) - depth_mm
        belly_mm = rng.uniform(75, 125)
        belly_y = smooth(front, 1, 60.0) * 0.5 + belly_mm * (1 + 0.12 * np.sin((level + rng.uniform(-60, 60)) / 90))
        return Curves(
            start_mm=z[0],
            canal_x=canal_x.astype(np.float32),
            canal_y=canal_y.astype(np.float32),
            canal_cosine=np.cos(np.arctan(np.gradient(canal_y, z))).astype(np.float32),
            front_y=smooth(front, 1, 6.0).astype(np.float32),
            back_y=back_y.astype(np.float32),
            belly_y=belly_y.astype(np.float32),
        )

    def rows(self, z: np.ndarray) -> np.ndarray:
        """Return indices into the tables, with the shape of `z`."""
        return np.clip((z - self.start_mm) / CURVE_STEP_MM, 0, len(self.canal_x) - 1).astype(np.int16)
