"""Render the phantom: tissues and labels at the voxels of a sagittal acquisition.

Arrays here have the axes (slice, posterior to anterior, inferior to superior); `scripts/phantoms/phantom.py` turns them into the scan's
voxel order. Every tissue is painted over the earlier ones wherever the signed distance to its surface (`inside_mm`, approximate,
positive inside) is positive, with a soft edge of one voxel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter1d

from scripts.phantoms.anatomy import CANAL_MM, Curves, Disc, Spine, Vertebra

CONTRASTS = ("T1w", "T2w", "STIR")
# mean intensity in T1w, T2w and STIR (subcutaneous fat in T1w = 1000) and relative amplitude of the texture
TISSUES = {
    "air": (6, 6, 6, 0.0),
    "skin": (380, 240, 220, 0.1),
    "fat": (1000, 880, 70, 0.05),
    "muscle": (330, 170, 200, 0.1),
    "viscera": (420, 360, 260, 0.25),
    "gas": (30, 25, 25, 0.2),
    "vessel": (90, 60, 70, 0.2),
    "fluid": (170, 1050, 1050, 0.03),
    "cord": (390, 390, 380, 0.05),
    "roots": (300, 480, 460, 0.1),
    "ligament": (140, 80, 70, 0.1),
    "cortex": (110, 70, 50, 0.1),
    "marrow": (540, 400, 130, 0.09),
    "vein": (380, 700, 600, 0.1),
    "annulus": (280, 150, 110, 0.1),
    "nucleus": (310, 680, 520, 0.1),
}
# Bony parts behind a lumbar body: centre and radii in mm to the right, anteriorly (0 = posterior wall) and superiorly.
# Each is drawn on both sides.
ARCH_MM = (
    ((15.0, -5.0, 5.0), (4.5, 9.0, 7.5)),  # pedicle
    ((16.0, -17.0, 13.0), (6.0, 5.5, 11.0)),  # superior articular process
    ((14.0, -22.0, -9.0), (6.0, 5.5, 13.0)),  # inferior articular process
    ((9.0, -24.0, -4.0), (8.0, 3.5, 10.0)),  # lamina
    ((28.0, -11.0, 4.0), (14.0, 4.0, 5.0)),  # transverse process
    ((0.0, -40.0, -8.0), (4.2, 17.0, 11.5)),  # spinous process
)
CORTEX_MM = 0.7  # half thickness of the cortical shell, which lies astride the surface


@dataclass(frozen=True)
class Grid:
    """The grid of an acquisition: voxel centres in world coordinates."""

    shape: tuple[int, int, int]
    affine: np.ndarray  # (4, 4), voxel indices to world mm

    @property
    def spacing_mm(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def points(self) -> np.ndarray:
        """Return the world coordinates of all voxels, (3, *shape), float32."""
        steps = [self.affine[:3, k, None] * np.arange(n) for k, n in enumerate(self.shape)]
        steps[0] += self.affine[:3, 3, None]
        x, y, z = (s.astype(np.float32) for s in steps)
        return x[:, :, None, None] + y[:, None, :, None] + z[:, None, None, :]

    def box(self, centre_mm: np.ndarray, axes: np.ndarray, half_mm: np.ndarray) -> tuple[slice, ...]:
        """Return the box of voxels around a cuboid with axes (3, 3) and half sizes (3,), clipped to the grid."""
        inverse = np.linalg.inv(self.affine)
        centre = inverse[:3, :3] @ centre_mm + inverse[:3, 3]
        half = np.abs(inverse[:3, :3] @ axes) @ half_mm
        low, high = np.floor(centre - half), np.ceil(centre + half) + 1
        return tuple(slice(int(np.clip(a, 0, n)), int(np.clip(b, 0, n))) for a, b, n in zip(low, high, self.shape, strict=True))

    def noise(self, rng: np.random.Generator, scale_mm: tuple[float, float, float]) -> np.ndarray:
        """Draw smooth Gaussian noise of unit variance and of the given correlation lengths along the three axes, float32.

        It takes one number from `rng` whatever the grid, so that the draws after it do not depend on the grid.
        """
        positions = [np.arange(n) * step for n, step in zip(self.shape, self.spacing_mm, strict=True)]
        knots = [np.arange(-scale, p[-1] + 2 * scale, scale) for p, scale in zip(positions, scale_mm, strict=True)]
        result = np.random.default_rng(rng.integers(2**63)).standard_normal([len(k) for k in knots], dtype=np.float32)
        for axis, scale in enumerate(scale_mm):
            weights = np.exp(-0.5 * ((positions[axis][:, None] - knots[axis]) / (0.7 * scale)) ** 2)
            weights = (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
            result = np.moveaxis(np.tensordot(weights, result, axes=(1, axis)), 0, axis)
        return np.ascontiguousarray(result)


@dataclass(frozen=True)
class Look:
    """Intensity and texture of one patient's tissues in one contrast."""

    tissues: dict[str, tuple[float, float]]

    @staticmethod
    def draw(rng: np.random.Generator, contrast: str) -> Look:
        column = CONTRASTS.index(contrast)
        jitter = np.exp(rng.normal(0, 0.08, len(TISSUES)))
        tissues = {name: (row[column] * j, row[3]) for (name, row), j in zip(TISSUES.items(), jitter, strict=True)}
        tissues["marrow"] = (tissues["marrow"][0] * np.exp(rng.normal(0, 0.12)), tissues["marrow"][1])
        return Look(tissues)

    def __getitem__(self, name: str) -> tuple[float, float]:
        return self.tissues[name]

    def blend(self, first: str, second: str, share: float) -> tuple[float, float]:
        """Mix two tissues, with a `share` of the second one."""
        (a, s), (b, t) = self.tissues[first], self.tissues[second]
        return a + share * (b - a), s + share * (t - s)


@dataclass
class Canvas:
    """Intensity, texture amplitude and label at all points of a grid."""

    grid: Grid
    look: Look
    points: np.ndarray = field(init=False)  # (3, *shape), mm
    value: np.ndarray = field(init=False)
    texture: np.ndarray = field(init=False)
    label: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.points = self.grid.points()
        self.value = np.full(self.grid.shape, self.look["air"][0], np.float32)
        self.texture = np.zeros(self.grid.shape, np.float32)
        self.label = np.zeros(self.grid.shape, np.uint8)

    @property
    def edge_mm(self) -> float:
        return float(self.grid.spacing_mm[1:].max())

    def paint(self, box: tuple[slice, ...], inside_mm: np.ndarray, tissue: str | tuple[float, float]) -> None:
        """Cover the points of `box` where `inside_mm` > 0 with a tissue."""
        cover = inside_mm / np.float32(self.edge_mm)
        cover += np.float32(0.5)
        np.clip(cover, 0, 1, out=cover)
        amounts = self.look[tissue] if isinstance(tissue, str) else tissue
        for layer, amount in zip((self.value, self.texture), amounts, strict=True):
            change = np.float32(amount) - layer[box]
            change *= cover
            layer[box] += change

    def local(self, box: tuple[slice, ...], v: Vertebra) -> np.ndarray:
        """Return the coordinates (3, ...) in mm of a box in the frame of a vertebra."""
        offset = self.points[(slice(None), *box)] - v.centre_mm.astype(np.float32)[:, None, None, None]
        return np.einsum("ji,j...->i...", v.axes.astype(np.float32), offset)


EVERYWHERE = (slice(None), slice(None), slice(None))


def superellipsoid(q: np.ndarray, centre_mm: tuple[float, ...], radii_mm: tuple[float, ...]) -> np.ndarray:
    """Return the signed distance in mm, positive inside, of points (3, ...) to a rounded cuboid."""
    cubes = (np.abs((q[k] - np.float32(centre_mm[k])) / np.float32(radii_mm[k])) for k in range(3))
    norm = np.cbrt(sum(c * c * c for c in cubes))
    return (1 - norm) * np.float32(min(radii_mm))


def cross_section(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the radius relative to the outline of a vertebra's cross-section (1 on it), round in front and flat at the posterior wall."""
    across, along = (2 * v) ** 2, (2 * u) ** 2
    flat = across * np.sqrt(across) + along**2  # orders 3 and 4
    rounded = across * np.sqrt(across) + along * np.sqrt(np.sqrt(along))  # orders 3 and 2.5
    return np.where(u < 0, flat, rounded) ** np.float32(1 / 3)


def body_surface(q: np.ndarray, v: Vertebra) -> np.ndarray:
    """Return the signed distance in mm, positive inside, of local points (3, ...) to the surface of a body."""
    relative_u, relative_v = q[1] / np.float32(v.depth_mm), q[0] / np.float32(v.width_mm)
    half_mm = v.height_mm(relative_u, relative_v) / 2
    level = np.clip(q[2] / half_mm, -1, 1)  # -1 at the inferior, 1 at the superior end-plate
    size = 1 - v.waist * (1 - level**2) - v.taper * (1 - level) / 2
    radial_mm = (1 - cross_section(relative_u / size, relative_v / size)) * size * np.float32(v.depth_mm / 2)
    return np.minimum(half_mm - np.abs(q[2]), radial_mm)


def paint_body(canvas: Canvas, v: Vertebra, marrow: tuple[float, float]) -> None:
    """Paint a body with its cortical shell and its basivertebral vein, and its label."""
    rim_mm = max(v.anterior_mm, v.posterior_mm) / 2 + 6
    box = canvas.grid.box(v.centre_mm, v.axes, np.array([v.width_mm / 2 + 3, v.depth_mm / 2 + 3, rim_mm]))
    q = canvas.local(box, v)
    inside_mm = body_surface(q, v)
    canvas.paint(box, inside_mm + CORTEX_MM, "cortex")
    canvas.paint(box, inside_mm - CORTEX_MM, marrow)
    if not v.taper:
        vein_mm = superellipsoid(q, (0.0, -0.36 * v.depth_mm, 0.0), (4.0, 0.16 * v.depth_mm, 2.0))
        canvas.paint(box, np.minimum(vein_mm, inside_mm), "vein")
    canvas.label[box][inside_mm > 0] = v.verse


def paint_disc(canvas: Canvas, disc: Disc) -> None:
    """Paint a disc between the end-plates of its neighbours, and its label."""
    lower, upper = disc.lower, disc.upper
    centre_mm = (lower.end_plate_mm(1, 0.0) + upper.end_plate_mm(-1, 0.0)) / 2
    half_mm = np.array([upper.width_mm / 2 + 4, upper.depth_mm / 2 + 6 + abs(disc.slip_mm), 14.0])
    box = canvas.grid.box(centre_mm, upper.axes, half_mm)
    below, above = canvas.local(box, lower), canvas.local(box, upper)
    u_below, v_below = below[1] / np.float32(lower.depth_mm), below[0] / np.float32(lower.width_mm)
    u_above, v_above = above[1] / np.float32(upper.depth_mm), above[0] / np.float32(upper.width_mm)
    radius = cross_section((u_below + u_above) / 2, (v_below + v_above) / 2)
    floor_mm = below[2] - lower.height_mm(u_below, v_below) / 2
    ceiling_mm = -above[2] - upper.height_mm(u_above, v_above) / 2
    gap_mm = np.minimum(floor_mm, ceiling_mm)
    inside_mm = np.minimum(gap_mm, (1.02 + 0.07 * disc.degeneration - radius) * np.float32(upper.depth_mm / 2))
    # worn discs lose their bright nucleus
    nucleus_mm = 0.5 * np.minimum(gap_mm - 1.0, (0.72 - radius) * np.float32(upper.depth_mm / 2))  # a blurred edge
    canvas.paint(box, inside_mm, "annulus")
    canvas.paint(box, nucleus_mm, canvas.look.blend("nucleus", "annulus", 0.9 * disc.degeneration))
    canvas.label[box][inside_mm > 0] = disc.verse


def paint_arch(canvas: Canvas, v: Vertebra, marrow: tuple[float, float]) -> None:
    """Paint pedicles, laminae and processes, which are bone without a label."""
    scale = v.posterior_mm / 26.0
    slant = 0.9 if v.name.startswith("T") and v.name not in ("T11", "T12") else 0.25  # thoracic spinous processes point down
    centre_mm = v.centre_mm - v.axes[:, 1] * (v.depth_mm / 2 + 25)
    box = canvas.grid.box(centre_mm, v.axes, np.array([44.0, 34.0, 60.0 * slant + 20]))
    q = canvas.local(box, v)
    q[0] = np.abs(q[0])  # both sides at once
    q[1] += np.float32(v.depth_mm / 2)
    q[2] -= np.float32(slant) * np.minimum(q[1] + 14, 0)
    parts = [superellipsoid(q, centre, tuple(np.array(radii) * scale)) for centre, radii in ARCH_MM]
    inside_mm = np.maximum.reduce(parts)
    canvas.paint(box, inside_mm, "cortex")
    canvas.paint(box, inside_mm - 1.0, marrow)


def paint_sacral_wings(canvas: Canvas, v: Vertebra, marrow: tuple[float, float]) -> None:
    """Paint the lateral mass of a sacral segment, and its part behind the canal."""
    box = canvas.grid.box(v.centre_mm, v.axes, np.array([55.0, 45.0, v.middle_mm]))
    q = canvas.local(box, v)
    wide_mm, deep_mm = v.width_mm * (1 - v.taper / 2), v.depth_mm * (1 - v.taper / 2)
    wing_mm = superellipsoid(q, (0.0, -0.15 * deep_mm, -1.0), (wide_mm, 0.42 * deep_mm, v.middle_mm * 0.55))
    crest_mm = superellipsoid(q, (0.0, -deep_mm / 2 - 17.0, 0.0), (16.0, 3.5, v.middle_mm * 0.5))
    inside_mm = np.maximum(wing_mm, crest_mm)
    canvas.paint(box, inside_mm, "cortex")
    canvas.paint(box, inside_mm - 1.5, marrow)


def paint_trunk(canvas: Canvas, spine: Spine, curves: Curves, rng: np.random.Generator) -> None:
    """Paint everything around the spine: skin, fat, muscles, vessels, viscera."""
    x, y, z = canvas.points
    rows = curves.rows(z)
    behind_mm, before_mm = rng.uniform(5, 25), rng.uniform(5, 30)  # subcutaneous fat
    side = x - curves.canal_x[rows]
    back = y - curves.back_y[rows] - np.minimum(side**2, 60**2) / 350
    belly = curves.belly_y[rows] - y - side**2 / 350
    canal = (curves.canal_y[rows] - y) * curves.canal_cosine[rows]  # distance behind the canal's middle
    front = (y - curves.front_y[rows]) * curves.canal_cosine[rows]  # distance in front of the bodies
    skin_mm = np.minimum(back, belly)
    canvas.paint(EVERYWHERE, skin_mm, "skin")
    canvas.paint(EVERYWHERE, skin_mm - 2, "fat")
    canvas.paint(EVERYWHERE, np.minimum(belly - before_mm, back - behind_mm), "muscle")

    # organs and bowel float in fat behind the muscles of the belly; fat surrounds the spine
    canvas.paint(EVERYWHERE, np.minimum(belly - before_mm - 7, -canal - 12), "fat")
    visceral_mm = np.minimum(belly - before_mm - 7, front - 1)
    bowel = canvas.grid.noise(rng, (14.0, 10.0, 14.0))
    content = canvas.look.blend("viscera", ("gas", "fluid", "vessel")[rng.integers(3)], rng.uniform(0.3, 1))
    canvas.paint(EVERYWHERE, visceral_mm, canvas.look.blend("fat", "viscera", rng.uniform(0.4, 1.0)))
    canvas.paint(EVERYWHERE, np.minimum(visceral_mm - 5, bowel * 8 + 1), "viscera")
    canvas.paint(EVERYWHERE, np.minimum(visceral_mm - 8, bowel * 8 - 7), content)

    # behind the canal: muscles streaked with fat, worst at the lower end of the spine; ligaments between the spinous processes
    dorsal_mm = np.minimum(canal + 4, back - behind_mm - 1)
    streaks = canvas.grid.noise(rng, (3.5, 2.5, 14.0)) + rng.normal(-1.5, 0.4)
    lower = np.clip((spine.level_mm("L3") - z) / 70, 0, 1.2)
    canvas.paint(EVERYWHERE, np.minimum(dorsal_mm, (streaks + lower) * 2), "fat")
    ligament = canvas.look.blend("ligament", "fat", rng.uniform(0.2, 0.7))
    canvas.paint(EVERYWHERE, np.minimum(dorsal_mm, 4 - np.abs(side)), ligament)

    # psoas muscles beside the bodies; vessels in front of them, which part below L4
    psoas_mm = (1 - np.hypot((np.abs(side) - 32 - 0.1 * (spine.level_mm("L1") - z)) / 16, (canal + 24) / 22)) * 16
    canvas.paint(EVERYWHERE, np.minimum(psoas_mm, (spine.level_mm("L1") - z) / 3), "muscle")
    fork_mm = np.clip(spine.level_mm("L4") - z, 0, 80) / 2
    for offset_mm, radius_mm in ((-9.0, rng.uniform(7, 10)), (15.0, rng.uniform(8, 11))):
        across = side - offset_mm - np.sign(offset_mm, dtype=np.float32) * fork_mm
        canvas.paint(EVERYWHERE, radius_mm - np.hypot(across, front - radius_mm - 3), "vessel")

    has_full_bladder, bladder_mm = rng.random() < 0.6, np.array([0.0, rng.uniform(75, 100), rng.uniform(-35, -10)])
    if has_full_bladder:
        centre_mm, radii_mm = spine["S3"].centre_mm + bladder_mm, (45.0, 35.0, 28.0)
        box = canvas.grid.box(centre_mm, np.eye(3), np.array(radii_mm))
        canvas.paint(box, superellipsoid(canvas.points[(slice(None), *box)], tuple(centre_mm), radii_mm), "fluid")


def paint_canal(canvas: Canvas, spine: Spine, curves: Curves, rng: np.random.Generator) -> None:
    """Paint the spinal canal with fat, dural sac, cord and nerve roots."""
    heights = canvas.points[2]
    seen = slice(*curves.rows(np.array([heights.min(), heights.max() + 1])))
    low = np.array([curves.canal_x[seen].min() - 14, curves.canal_y[seen].min() - 14, heights.min()])
    high = np.array([curves.canal_x[seen].max() + 14, curves.canal_y[seen].max() + 14, heights.max()])
    box = canvas.grid.box((low + high) / 2, np.eye(3), (high - low) / 2)
    x, y, z = canvas.points[(slice(None), *box)]
    rows = curves.rows(z)
    across = x - curves.canal_x[rows]
    along = (y - curves.canal_y[rows]) * curves.canal_cosine[rows]

    def ellipse_mm(half_width_mm: float, half_depth_mm: float, shift_mm: float, size: np.ndarray) -> np.ndarray:
        norm = np.hypot(across / (half_width_mm * size), (along - shift_mm) / (half_depth_mm * size))
        return (1 - norm) * half_depth_mm * size

    def tapered(end_mm: float, length_mm: float) -> np.ndarray:
        """Return 1 above, shrinking to almost nothing at the height `end_mm`."""
        return np.sqrt(np.clip((z - end_mm) / length_mm, 0.001, 1.0))

    canal_mm = ellipse_mm(*CANAL_MM, 0.0, tapered(spine.level_mm("S4"), 10.0))
    canvas.paint(box, canal_mm + 1.2, "ligament")
    canvas.paint(box, canal_mm, "fat")
    sac = tapered(spine.level_mm("S2") + rng.normal(0, 6), 45.0) * np.float32(rng.uniform(0.9, 1.08))
    sac_mm = ellipse_mm(10.5, 7.2, 0.8, sac)
    canvas.paint(box, sac_mm + 0.4, "ligament")
    canvas.paint(box, sac_mm - 0.4, "fluid")
    conus_mm = spine.level_mm("L1") + rng.normal(-5, 12)
    roots_mm = np.minimum(ellipse_mm(8.5, 4.2, -2.2, sac), (conus_mm + 20 - z) / 4)
    bundles = canvas.grid.noise(rng, (2.5, 1.6, 25.0))[box]
    canvas.paint(box, np.minimum(roots_mm, 1.2 * (bundles + 0.3)), "roots")
    canvas.paint(box, ellipse_mm(5.0, 3.8, -0.4, tapered(conus_mm, 25.0)), "cord")


def paint_spine(canvas: Canvas, spine: Spine, curves: Curves, rng: np.random.Generator) -> None:
    """Paint bones, canal and discs, each over the ones before."""
    marrow, texture = canvas.look["marrow"]
    levels = [(marrow * f, texture) for f in np.exp(rng.normal(0, 0.04, len(spine.vertebrae)))]
    for v, bone in zip(spine.sacrum[::-1], levels, strict=False):
        paint_sacral_wings(canvas, v, bone)
    for v, bone in zip(spine.column, levels[len(spine.sacrum) :], strict=True):
        paint_arch(canvas, v, bone)
    paint_canal(canvas, spine, curves, rng)
    for v, bone in zip(spine.vertebrae, levels, strict=True):
        paint_body(canvas, v, bone)
    for disc in spine.discs:
        paint_disc(canvas, disc)


def render(spine: Spine, grid: Grid, contrast: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Render the image (int16) and the label (uint8, VerSe numbers), both with the shape of the grid.

    A thick slice is the mean of three sub-slices, with the label of the middle one.
    """
    sub_slices = 3 if grid.spacing_mm[0] > 1.5 else 1
    fine = grid.affine.copy()
    fine[:3, 3] -= grid.affine[:3, 0] * (sub_slices - 1) / (2 * sub_slices)
    fine[:3, 0] /= sub_slices
    canvas = Canvas(Grid((grid.shape[0] * sub_slices, *grid.shape[1:]), fine), Look.draw(rng, contrast))
    curves = Curves.along(spine, rng)
    paint_trunk(canvas, spine, curves, rng)
    paint_spine(canvas, spine, curves, rng)

    value, texture = (a.reshape(grid.shape[0], sub_slices, *grid.shape[1:]).mean(1) for a in (canvas.value, canvas.texture))
    depth_mm = canvas.points[1, sub_slices // 2 :: sub_slices] - np.float32(curves.back_y.min())
    image = acquire(value, texture, depth_mm, grid, rng)
    return image, np.ascontiguousarray(canvas.label[sub_slices // 2 :: sub_slices])


def acquire(value: np.ndarray, texture: np.ndarray, depth_mm: np.ndarray, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Scan a map of tissue intensities: add texture, blur, coil sensitivity, noise and gain; int16.

    Args:
        value: mean intensity of the tissue at every voxel.
        texture: relative amplitude of the texture of the tissue.
        depth_mm: distance of every voxel from the surface coil behind the patient.
        grid: the voxels.
        rng: source of everything random.
    """
    grain = 0.6 * grid.noise(rng, (5.0, 1.3, 1.3)) + 0.8 * grid.noise(rng, (9.0, 7.0, 7.0))
    image = value * np.maximum(1 + texture * grain, 0.1)
    for axis in (1, 2):
        image = gaussian_filter1d(image, 0.5, axis=axis)
    image *= np.exp(-depth_mm / np.float32(rng.uniform(90, 350)))
    image *= np.exp(np.float32(rng.uniform(0.05, 0.15)) * grid.noise(rng, (80.0, 80.0, 80.0)))
    image /= np.percentile(image, 99.5)
    sigma = rng.uniform(0.008, 0.03)
    real, imaginary = sigma * rng.standard_normal((2, *grid.shape), dtype=np.float32)
    gain = rng.uniform(500, 1300)
    return np.rint(np.hypot(image + real, imaginary) * gain).astype(np.int16)
