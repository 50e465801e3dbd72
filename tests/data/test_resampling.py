"""Interpolation axis by axis: against SciPy and MONAI on oblique, anisotropic grids, and by hand at the rim."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd, SpatialResample
from scipy import ndimage

from scripts.data import resampling
from scripts.data.resampling import interpolate_straight, resample_axes, straight_axes
from scripts.transforms import KeysOnlySpacingd

BOX = (slice(2, 9), slice(0, 6), slice(1, 12))
TURNED = np.array([[0, 0, 0.4, 0.3], [-1.5, 0, 0, 12.0], [0, 0.7, 0, 1.2], [0, 0, 0, 1]])  # source axes: axes 2, 0 and 1 of the box


def test_axes_of_a_turned_grid():
    assert straight_axes(np.diag([2.0, -0.5, 1.0, 1.0]), BOX) == [0, 1, 2]
    assert straight_axes(TURNED, BOX) == [2, 0, 1]


@pytest.mark.parametrize(("aside", "straight"), [(0.5e-4, True), (1e-3, False)])
def test_an_axis_may_leave_its_line_by_a_thousandth_of_a_voxel(aside, straight):
    matrix = np.eye(4)
    matrix[0, 1] = aside
    assert (straight_axes(matrix, BOX) is not None) is straight  # 12 voxels from the first


def test_a_long_axis_leaves_its_line_further_out():
    matrix = np.eye(4)
    matrix[0, 1] = 1e-4
    few, many = (slice(0, 8), slice(0, 8), slice(0, 8)), (slice(0, 8), slice(0, 400), slice(0, 8))
    assert straight_axes(matrix, few) == [0, 1, 2]
    assert straight_axes(matrix, many) is None  # 0.04 voxels off at its end
    assert straight_axes(matrix, (slice(0, 8), slice(-400, -392), slice(0, 8))) is None


def test_two_axes_along_one_are_oblique():
    c = np.sqrt(0.5)
    matrix = np.eye(4)
    matrix[:2, :2] = [[c, -c], [c, c]]
    assert straight_axes(matrix, BOX) is None


@pytest.mark.parametrize("matrix", [np.diag([0.6, 1.7, 1.0, 1.0]), TURNED], ids=["scaled", "turned"])
def test_equals_scipy(matrix):
    volume = np.random.default_rng(0).normal(size=(6, 14, 13)).astype(np.float32)
    result = interpolate_straight(torch.from_numpy(volume), matrix, BOX, straight_axes(matrix, BOX)).numpy()
    voxel = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in BOX), indexing="ij"), -1) @ matrix[:3, :3].T + matrix[:3, 3]
    inside = ((voxel > -0.5) & (voxel < np.array(volume.shape) - 0.5)).all(-1)
    assert inside.sum() > 100
    expected = ndimage.map_coordinates(volume.astype(float), np.moveaxis(voxel, -1, 0), order=1, mode="nearest")
    np.testing.assert_allclose(result[inside], expected[inside], atol=1e-5)
    assert np.isneginf(result[~inside]).all()


def test_a_sheared_grid_is_resampled_in_space():
    """`Spacing` makes its axes orthogonal: a ramp in world coordinates stays that ramp."""
    affine = np.array([[2.0, 0.8, 0, 5], [0, 1.5, 0, -3], [0, 0, 1, 0], [0, 0, 0, 1]])
    voxels = np.indices((12, 14, 6)).reshape(3, -1)
    ramp = (affine[:3, :3] @ voxels)[0].reshape(12, 14, 6)
    image = MetaTensor(torch.from_numpy(ramp)[None].float(), affine=torch.from_numpy(affine))
    result = KeysOnlySpacingd("image", (1.0, 1.0, 1.0), mode="bilinear")({"image": image})["image"]
    where = result.affine.numpy()
    expected = np.tensordot(where[0, :3], np.indices(result.shape[1:]), 1) + where[0, 3] - 5
    inside = (expected > 9) & (expected < 20)
    inside[:, [0, 1, -2, -1]] = False  # beyond the first and the last voxel their value is repeated
    assert inside.any()
    np.testing.assert_allclose(result[0].numpy()[inside], expected[inside], atol=0.01)


def test_rim_by_hand():
    volume = torch.tensor([1.0, 3.0]).view(1, 1, 2)
    matrix = np.diag([1.0, 1.0, 0.25, 1.0])
    matrix[2, 3] = -0.5
    result = interpolate_straight(volume, matrix, (slice(0, 1), slice(0, 1), slice(0, 9)), [0, 1, 2])  # -0.5 to 1.5
    never = -torch.inf
    assert result.flatten().tolist() == [never, 1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0, never]


def test_input_is_not_changed():
    volume = torch.arange(8.0).view(2, 2, 2)
    interpolate_straight(volume, np.diag([1.0, 1.0, 1.0, 1.0]), (slice(0, 4), slice(0, 2), slice(0, 2)), [0, 1, 2])
    assert torch.equal(volume, torch.arange(8.0).view(2, 2, 2))


def test_other_steps_by_hand():
    volume = torch.tensor([0.0, 10.0, 30.0]).reshape(1, 3, 1, 1)
    assert resample_axes(volume, (0.5, 1, 1), (6, 1, 1)).ravel().tolist() == [0, 5, 10, 20, 30, 30]  # the last value is repeated
    assert resample_axes(volume, (2, 1, 1), (2, 1, 1)).ravel().tolist() == [0, 30]
    assert resample_axes(volume, (0.5, 1, 1), (6, 1, 1), (-0.25, 0, 0)).ravel().tolist() == [0, 2.5, 7.5, 15, 25, 30]
    single = torch.full((1, 1, 1, 1), 7.0)
    assert resample_axes(single, (0.2, 1, 1), (3, 1, 1)).ravel().tolist() == [7, 7, 7]


@pytest.mark.parametrize("order", [(0, 3, 2, 1), (0, 2, 3, 1), (3, 0, 1, 2)])
def test_any_order_in_memory(order):
    """Axes lie in memory as in the file, with nibabel the first one last; an interpolation neither heeds nor changes that."""
    plain = torch.from_numpy(np.random.default_rng(0).random((1, 7, 8, 9), dtype=np.float32))
    back = [order.index(a) for a in range(4)]
    other = plain.permute(order).contiguous().permute(back)
    result, expected = (resample_axes(v, (0.5, 1.7, 1.1), (12, 4, 8)) for v in (other, plain))
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert result.permute(order).is_contiguous()


@pytest.mark.parametrize("chunk", [2**22, 50])
@pytest.mark.parametrize(
    ("spacing", "shape"), [((0.7, 1.3, 4.2), (15, 20, 9)), ((1.0, 1.0, 1.0), (5, 6, 7)), ((4.0, 0.8, 0.8), (1, 30, 30))]
)
def test_it_is_what_monai_samples(spacing, shape, chunk, monkeypatch):
    monkeypatch.setattr(resampling, "CHUNK_VOXELS", chunk)
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag(spacing)
    affine[:3, 3] = (3, 4, 5)
    data = torch.from_numpy(np.random.default_rng(0).random((1, *shape), dtype=np.float32))
    kept = data.clone()
    image = MetaTensor(data, affine=torch.from_numpy(affine), meta={"filename_or_obj": "a.nii"})
    options = {"keys": "image", "pixdim": (1.0, 1.0, 1.0), "mode": ["bilinear"]}
    of_monai = Spacingd(**options)
    theirs = of_monai({"image": image})["image"]
    monkeypatch.setattr(SpatialResample, "__call__", None)  # ours does without it
    ours = KeysOnlySpacingd(**options)({"image": image})["image"]
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor(), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.affine, theirs.affine, atol=1e-9, rtol=0)
    assert ours.meta["filename_or_obj"] == "a.nii"
    assert torch.equal(data, kept)
    monkeypatch.undo()
    own = KeysOnlySpacingd(**options)
    back, expected = own.inverse(own({"image": image}))["image"], of_monai.inverse({"image": theirs})["image"]
    torch.testing.assert_close(back.as_tensor(), expected.as_tensor(), atol=1e-5, rtol=0)
    torch.testing.assert_close(back.affine, image.affine, atol=1e-9, rtol=0)
    assert not image.applied_operations


@pytest.mark.parametrize("seed", range(8))
def test_the_grid_starts_at_the_first_voxel_whatever_is_rounded(seed):
    """Headers of oblique scans hold float32; that of a label may be rounded otherwise."""
    rng = np.random.default_rng(seed)
    exact = np.eye(4)
    exact[:3, :3] = nib.eulerangles.euler2mat(*rng.uniform(-0.3, 0.3, 3)) @ np.diag([4.0, 0.8, 0.8])
    exact[:3, 3] = rng.uniform(-150, 150, 3)
    affines = [exact, exact.astype(np.float32).astype(float), exact + rng.uniform(-1e-7, 1e-7, (4, 4)) * [[1], [1], [1], [0]]]
    for affine in affines:
        data = {key: MetaTensor(torch.rand(1, 9, 60, 50), affine=torch.from_numpy(affine)) for key in ("image", "label")}
        done = KeysOnlySpacingd(("image", "label"), (1.0, 1.0, 1.0), mode=("bilinear", "nearest"))(data)
        for key in data:
            assert done[key].shape == (1, 33, 48, 40)
            np.testing.assert_allclose(done[key].affine[:3, 3], affine[:3, 3], atol=1e-9)
            torch.testing.assert_close(done[key][:, 0, 0, 0], data[key][:, 0, 0, 0])
            assert torch.equal(done[key][:, ::4, 0, 0], data[key][:, :, 0, 0]) or key == "image"
