"""Back to the scan's own grid: against SciPy on oblique, anisotropic grids, and by hand at the rim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts.levels import restore
from scripts.levels.restore import ClassLogits


def restore_label_map(logits: torch.Tensor, *grids) -> torch.Tensor:
    return restore.restore_label_map(ClassLogits.of(logits), *grids)


def grid(spacing_mm: tuple[float, float, float], degrees: float = 0.0, origin: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """Affine turned by `degrees` about x and then about z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(spacing_mm)
    affine[:3, 3] = origin
    return affine


def smooth_logits(shape: tuple[int, int, int] = (7, 14, 16), classes: int = 5) -> torch.Tensor:
    noise = np.random.default_rng(0).normal(size=(classes, *shape))
    logits = torch.from_numpy(np.stack([ndimage.gaussian_filter(n, 1.5) for n in noise]) * 50).float()
    assert len(torch.unique(logits.argmax(0))) == classes
    return logits


def plain(
    logits: torch.Tensor, affine: np.ndarray, target_affine: np.ndarray, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Every class resampled by SciPy, then argmax; and how far the largest is ahead of the second."""
    voxel = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    m = np.linalg.inv(affine) @ target_affine
    source = m[:3, :3] @ voxel + m[:3, 3:]
    values = np.stack([ndimage.map_coordinates(c, source, order=1, mode="nearest") for c in logits.double().numpy()])
    size = np.array(logits.shape[1:])[:, None]
    inside = ((source > -0.5) & (source < size - 0.5)).all(0)
    ordered = np.sort(values, 0)
    margin = np.where(inside, ordered[-1] - ordered[-2], np.inf)
    return (values.argmax(0) * inside).reshape(shape), margin.reshape(shape)


GRIDS = {
    "finer": (grid((4, 2, 2)), grid((4, 0.7, 0.7), 0, (1, 3, -2)), (7, 50, 60)),
    "oblique": (grid((4, 2, 2), 0, (-10, 5, 3)), grid((3.3, 0.9, 1.2), 17, (-14, 2, 1)), (11, 34, 30)),
    "both oblique, mirrored": (grid((4, 2, 2), -8), grid((-3.5, 1.1, -0.8), 12, (25, -3, 28)), (9, 30, 40)),
    "turned axes": (grid((4, 2, 2)), grid((4, 0.8, 0.9), 9)[:, [2, 0, 1, 3]], (32, 8, 35)),
    "coarser": (grid((4, 2, 2)), grid((5, 3.1, 4.7), 5), (6, 10, 8)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_equals_resampling_of_every_class(name):
    affine, target_affine, shape = GRIDS[name]
    logits = smooth_logits()
    expected, margin = plain(logits, affine, target_affine, shape)
    assert np.count_nonzero(expected) > 100
    result = restore_label_map(logits, affine, target_affine, shape)
    assert result.shape == shape
    assert result.dtype == torch.uint8
    clear = margin > 1e-2  # of logits that span about 100: nothing but ties is left out
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(result.numpy()[clear], expected[clear])


def test_a_voxel_far_ahead_reaches_up_to_its_neighbours():
    """On a grid four times as fine a logit of 100 is ahead of a background of 1 up to 0.98 of a voxel away, in each direction."""
    logits = torch.zeros(2, 5, 5, 5)
    logits[0], logits[1, 2, 2, 2] = 1.0, 100.0
    fine = grid((0.25, 0.25, 0.25))
    result = restore_label_map(logits, np.eye(4), fine, (20, 20, 20)).numpy()
    expected, margin = plain(logits, np.eye(4), fine, (20, 20, 20))
    assert np.flatnonzero(result[:, 8, 8]).tolist() == [5, 6, 7, 8, 9, 10, 11]
    np.testing.assert_array_equal(result[margin > 1e-2], expected[margin > 1e-2])


def test_identity_is_argmax():
    logits = torch.randn(6, 5, 7, 9, generator=torch.Generator().manual_seed(0))
    affine = grid((4, 2, 2), 11, (5, -3, 8))
    result = restore_label_map(logits, affine, affine, (5, 7, 9))
    np.testing.assert_array_equal(result.numpy(), logits.argmax(0).numpy())


def test_mirrored_axes_mirror_the_map():
    logits = torch.randn(6, 5, 7, 9, generator=torch.Generator().manual_seed(1))
    affine = grid((4, 2, 2), 11, (5, -3, 8))
    mirror = np.diag([-1.0, 1, -1, 1])
    mirror[:3, 3] = (4, 0, 8)  # voxel i of the result is voxel 4 - i, j, 8 - k
    result = restore_label_map(logits, affine, affine @ mirror, (5, 7, 9))
    np.testing.assert_array_equal(result.numpy(), logits.argmax(0).flip(0, 2).numpy())


@pytest.mark.parametrize("chunk", [1, 700, 5000])
def test_chunks_do_not_matter(monkeypatch, chunk):
    logits = smooth_logits()
    affine, target_affine, shape = GRIDS["oblique"]
    whole = restore_label_map(logits, affine, target_affine, shape)
    monkeypatch.setattr(restore, "CHUNK_VOXELS", chunk)
    calls = []
    monkeypatch.setattr(restore, "grid_sample", lambda *a, sample=restore.grid_sample, **k: calls.append(1) or sample(*a, **k))
    np.testing.assert_array_equal(restore_label_map(logits, affine, target_affine, shape).numpy(), whole.numpy())
    assert len(calls) > 1


def test_outside_is_background_but_for_half_a_voxel():
    logits = torch.zeros(3, 3, 3, 3)
    logits[2] = 1  # class 2 everywhere, 3 voxels of 2 mm with centres at 0, 2 and 4 mm: -1 to 5 mm
    shape = (12, 12, 12)  # of 1 mm, the first centre at -3 mm
    expected = np.zeros(shape, np.uint8)
    expected[3:8, 3:8, 3:8] = 2  # centres at 0 to 4 mm: those at -1 and 5 mm lie on the rim
    result = restore_label_map(logits, grid((2, 2, 2)), grid((1, 1, 1), origin=(-3, -3, -3)), shape)
    np.testing.assert_array_equal(result.numpy(), expected)
    expected[2, 2:8, 2:8] = expected[2:8, 2, 2:8] = expected[2:8, 2:8, 2] = 2
    result = restore_label_map(logits, grid((2, 2, 2)), grid((1, 1, 1), origin=(-2.9, -2.9, -2.9)), shape)  # -0.9 to 4.1 mm
    np.testing.assert_array_equal(result.numpy(), expected)


def test_all_background():
    logits = torch.zeros(4, 3, 3, 3)
    logits[0] = 1
    result = restore_label_map(logits, np.eye(4), grid((0.5, 0.5, 0.5), 20), (5, 6, 7))
    assert result.shape == (5, 6, 7)
    assert result.dtype == torch.uint8
    assert not result.any()


def test_no_overlap():
    logits = torch.zeros(2, 3, 3, 3)
    logits[1] = 1
    for origin in ((100, 0, 0), (0, -100, 0), (-50, 50, 50)):
        assert not restore_label_map(logits, np.eye(4), grid((1, 1, 1), origin=origin), (4, 4, 4)).any()


def test_single_slice():
    plane = torch.tensor([[0.0, 3, 3], [0, 3, 0]])
    logits = torch.stack([torch.ones(1, 2, 3), plane[None]])
    source = grid((4, 2, 2))
    np.testing.assert_array_equal(restore_label_map(logits, source, source, (1, 2, 3)).numpy(), [[[0, 1, 1], [0, 1, 0]]])
    # three slices of 1.5 mm at -1.5, 0 and 1.5 mm, all inside the slice of 4 mm
    result = restore_label_map(logits, source, grid((1.5, 2, 2), origin=(-1.5, 0, 0)), (3, 2, 3))
    np.testing.assert_array_equal(result.numpy(), [[[0, 1, 1], [0, 1, 0]]] * 3)
    # three slices of 3 mm at -3, 0 and 3 mm: only the middle one
    result = restore_label_map(logits, source, grid((3, 2, 2), origin=(-3, 0, 0)), (3, 2, 3))
    np.testing.assert_array_equal(result.numpy(), [np.zeros((2, 3)), [[0, 1, 1], [0, 1, 0]], np.zeros((2, 3))])
    # one slice out of several
    logits = torch.zeros(2, 3, 2, 2)
    logits[1, 1] = 1
    result = restore_label_map(logits, source, grid((4, 2, 2), origin=(4, 0, 0)), (1, 2, 2))
    np.testing.assert_array_equal(result.numpy(), np.ones((1, 2, 2)))


def test_ties_of_interpolation_by_hand():
    logits = torch.tensor([[0.0, 0.0], [1.0, -3.0]]).view(2, 1, 1, 2)  # class 1 leads until a quarter of the way
    result = restore_label_map(logits, np.eye(4), grid((1, 1, 0.2)), (1, 1, 6))
    assert result[0, 0].tolist() == [1, 1, 0, 0, 0, 0]


def test_half_precision_and_input_unchanged():
    logits = smooth_logits().to(torch.bfloat16)
    copy, affine = logits.clone(), grid((4, 2, 2), 5)
    affine_copy = affine.copy()
    result = restore_label_map(logits, affine, affine, tuple(logits.shape[1:]))
    first, second = logits.float().topk(2, 0).values
    tied = first == second  # 8 bits of mantissa
    assert tied.float().mean() < 0.05
    np.testing.assert_array_equal(result[~tied].numpy(), logits.argmax(0)[~tied].numpy())
    assert torch.equal(logits, copy)
    np.testing.assert_array_equal(affine, affine_copy)
