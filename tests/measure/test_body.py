"""Heights and axes of bodies whose shape is known, on oblique and anisotropic grids."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine

from scripts.measure.body import measure_body
from scripts.phantoms.anatomy import rotation

UP = np.array([0.0, 0.0, 1.0])
GRIDS = {  # spacing in mm, rotation of the grid about x, y, z in degrees
    "1 mm": ((1.0, 1.0, 1.0), (0, 0, 0)),
    "thick sagittal slices": ((4.0, 0.8, 0.8), (0, 0, 0)),
    "oblique": ((4.0, 0.8, 0.8), (9, -7, 5)),
}


def affine_of(spacing_mm: tuple, turns_deg: tuple) -> np.ndarray:
    """A grid of about 100 mm with its middle at the origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.multi_dot([rotation(axis, angle) for axis, angle in enumerate(turns_deg)]) * spacing_mm
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape_of(spacing_mm)) - 1) / 2
    return affine


def shape_of(spacing_mm: tuple) -> tuple[int, ...]:
    return tuple(round(100 / s) for s in spacing_mm)


def block(grid: str, axes: np.ndarray, anterior_mm: float, posterior_mm: float, depth_mm: float = 34.0) -> tuple[np.ndarray, np.ndarray]:
    """Mask and affine of a body 48 mm wide, whose flat end-plates are so far apart at 85 and 15 % of its depth."""
    affine = affine_of(*GRIDS[grid])
    voxels = np.stack(np.meshgrid(*map(np.arange, shape_of(GRIDS[grid][0])), indexing="ij"), -1)
    right, front, up = np.moveaxis((apply_affine(affine, voxels) - [2.0, -3.0, 1.0]) @ axes, -1, 0)
    height = (anterior_mm + posterior_mm) / 2 + (anterior_mm - posterior_mm) * front / (0.7 * depth_mm)
    return (abs(right) < 24) & (abs(front) < depth_mm / 2) & (abs(up) < height / 2), affine


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("anterior_mm", "posterior_mm"), [(26.0, 26.0), (28.0, 24.0), (14.0, 26.0)])
@pytest.mark.parametrize("turns_deg", [(0, 0, 0), (25, 0, 0), (-20, 8, 0)])
def test_heights_and_axes(grid, anterior_mm, posterior_mm, turns_deg):
    axes = rotation(1, turns_deg[1]) @ rotation(0, turns_deg[0])
    mask, affine = block(grid, axes, anterior_mm, posterior_mm)
    before = mask.copy()
    body = measure_body(mask, affine, UP)
    assert body.heights_mm() == pytest.approx((anterior_mm, (anterior_mm + posterior_mm) / 2, posterior_mm), abs=0.5)
    angles = np.rad2deg(np.arccos(np.clip((body.axes * axes).sum(0), -1, 1)))
    assert angles == pytest.approx(0, abs=1.0)
    np.testing.assert_allclose(body.axes.T @ body.axes, np.eye(3), atol=1e-9)
    for plate in (body.superior, body.inferior):
        assert plate.depth_mm == pytest.approx(34, abs=0.8)
    wedge = np.rad2deg(2 * np.arctan((anterior_mm - posterior_mm) / (2 * 0.7 * 34)))
    found = [
        np.rad2deg(np.arctan2(plate.chord @ body.axes[:, 2], plate.chord @ body.axes[:, 1])) for plate in (body.superior, body.inferior)
    ]
    assert found[0] - found[1] == pytest.approx(wedge, abs=1.2)
    assert np.array_equal(mask, before)


def test_points_lie_on_the_end_plates():
    mask, affine = block("1 mm", np.eye(3), 26.0, 26.0)
    body = measure_body(mask, affine, UP)
    centre = np.array([2.0, -3.0, 1.0])
    for plate, side in ((body.superior, 1), (body.inferior, -1)):
        expected = {"posterior_mm": -0.35 * 34, "middle_mm": 0.0, "anterior_mm": 0.35 * 34, "rim_mm": -17.0}
        for name, front in expected.items():
            np.testing.assert_allclose(getattr(plate, name), np.add(centre, [0, front, side * 13]), atol=0.6)


def test_hollow_end_plates_are_lower_in_the_middle():
    mask, affine = block("1 mm", np.eye(3), 28.0, 28.0)
    front = apply_affine(affine, np.argwhere(mask))[:, 1] + 3.0
    up = apply_affine(affine, np.argwhere(mask))[:, 2] - 1.0
    kept = abs(up) < 12 + 2 * (front / (0.35 * 34)) ** 2  # 24 mm in the middle, 28 mm at 15 and 85 % of the depth
    hollow = mask.copy()
    hollow[tuple(np.argwhere(mask)[~kept].T)] = False
    assert measure_body(hollow, affine, UP).heights_mm() == pytest.approx((28, 24, 28), abs=0.7)


def test_sacrum_stands_on_its_superior_end_plate():
    mask, affine = block("1 mm", np.eye(3), 22.0, 28.0)
    axis = measure_body(mask, affine, UP, upper_plate_alone=True).axes[:, 2]
    slope = np.rad2deg(np.arctan((22 - 28) / (2 * 0.7 * 34)))  # of the superior end-plate
    assert np.rad2deg(np.arctan2(-axis[1], axis[2])) == pytest.approx(slope, abs=0.7)


def no_body(name: str) -> np.ndarray:
    mask = block("1 mm", np.eye(3), 26.0, 26.0)[0]
    if name == "nothing":
        mask[:] = False
    elif name == "a speck":
        mask[:] = False
        mask[50, 50, 50] = True
    elif name == "a sheet":
        mask[:, :, :51] = False
        mask[:, :, 53:] = False
    elif name == "two halves":
        mask[:, 25:70] = False
    return mask


@pytest.mark.parametrize("name", ["nothing", "a speck", "a sheet", "two halves"])
def test_what_is_no_body(name):
    assert measure_body(no_body(name), affine_of(*GRIDS["1 mm"]), UP) is None


def test_an_axis_across_the_patient_is_none():
    mask, affine = block("1 mm", np.eye(3), 26.0, 26.0)
    assert measure_body(mask, affine, np.array([1.0, 0.0, 0.1])) is None
