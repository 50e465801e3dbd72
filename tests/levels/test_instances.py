"""Separate pieces of a mask, on boxes whose places and sizes are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from scripts.levels.instances import CORE_DEPTH_MM, find_instances, grown

UNIT = (1.0, 1.0, 1.0)


def mask_of(*boxes: tuple[slice, slice, slice], shape: tuple[int, int, int] = (20, 20, 48)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box] = True
    return mask


def cube(start: int, stop: int, side: slice = slice(2, 14)) -> tuple[slice, slice, slice]:
    return side, side, slice(start, stop)


def test_order_centres_and_volumes_with_anisotropic_voxels():
    boxes = [cube(4, 8), (slice(0, 3), slice(5, 7), slice(30, 40)), (slice(10, 20), slice(10, 20), slice(20, 22))]
    numbers, found = find_instances(mask_of(*boxes), (2.0, 1.0, 0.5), 0.0)
    assert [i.number for i in found] == [1, 2, 3]
    expected = np.zeros((20, 20, 48), np.int32)
    expected[boxes[1]], expected[boxes[2]], expected[boxes[0]] = 1, 2, 3  # from top to bottom
    np.testing.assert_array_equal(numbers, expected)
    assert numbers.dtype == np.int32
    # means of first and last voxel index, times the spacing
    np.testing.assert_allclose([i.centre_mm for i in found], [(2.0, 5.5, 17.25), (29.0, 14.5, 10.25), (15.0, 7.5, 2.75)])
    assert [i.volume_mm3 for i in found] == [60.0, 200.0, 576.0]  # voxels of 1 mm3


def test_smaller_pieces_are_left_out_and_do_not_count():
    large, small = cube(0, 4), (slice(0, 5), slice(0, 6), slice(20, 30))  # 576 and 300 voxels; the small one on top
    mask = mask_of(large, small)
    assert [i.volume_mm3 for i in find_instances(mask, UNIT, 300.0)[1]] == [300.0, 576.0]
    numbers, found = find_instances(mask, UNIT, 300.1)
    assert [(i.number, i.volume_mm3) for i in found] == [(1, 576.0)]
    np.testing.assert_array_equal(numbers, mask_of(large))
    assert len(find_instances(mask, (1.0, 1.0, 2.0), 300.1)[1]) == 2  # mm3, not voxels


def test_diagonal_neighbours_are_two_pieces():
    mask = mask_of((slice(0, 8), slice(0, 8), slice(0, 8)), (slice(8, 16), slice(8, 16), slice(8, 16)))
    for depth in (0.0, CORE_DEPTH_MM):
        assert len(find_instances(mask, UNIT, 0.0, depth)[1]) == 2


def test_thin_bridge_is_cut_in_its_middle():
    lower, bridge, upper = cube(0, 12), cube(12, 18, slice(6, 10)), cube(18, 30)
    mask = mask_of(lower, bridge, upper)
    assert len(find_instances(mask, UNIT, 300.0)[1]) == 1
    numbers, found = find_instances(mask, UNIT, 300.0, CORE_DEPTH_MM)
    expected = np.zeros(mask.shape, np.int32)
    expected[lower], expected[upper] = 2, 1
    expected[cube(12, 15, slice(6, 10))], expected[cube(15, 18, slice(6, 10))] = 2, 1  # the cores end at 8 and begin at 21
    np.testing.assert_array_equal(numbers, expected)
    assert [i.volume_mm3 for i in found] == [144 * 12 + 16 * 3] * 2


@pytest.mark.parametrize(("width", "pieces"), [(6, 2), (7, 1)])
def test_bridge_of_twice_the_depth_is_the_widest_to_be_cut(width, pieces):
    mask = mask_of(cube(0, 12), cube(12, 30, slice(4, 4 + width)), cube(30, 42))
    assert len(find_instances(mask, UNIT, 300.0, 3.0)[1]) == pieces


@pytest.mark.parametrize(("spacing", "pieces"), [((1.0, 1.0, 1.0), 1), ((1.0, 0.5, 1.0), 2), ((0.5, 1.0, 1.0), 2)])
def test_depth_is_in_mm_of_every_axis(spacing, pieces):
    mask = mask_of(cube(0, 12, slice(0, 20)), cube(12, 18, slice(4, 14)), cube(18, 30, slice(0, 20)))  # bridge of 10 or 5 mm
    assert len(find_instances(mask, spacing, 0.0, 3.0)[1]) == pieces


def test_wide_box_is_not_split():
    mask = mask_of((slice(0, 40), slice(0, 30), slice(2, 14)), shape=(40, 30, 20))
    numbers, found = find_instances(mask, UNIT, 300.0, CORE_DEPTH_MM)
    np.testing.assert_array_equal(numbers, mask)
    assert [i.volume_mm3 for i in found] == [14400.0]


def test_piece_without_a_core_stays_one():
    plate = mask_of((slice(0, 20), slice(0, 20), slice(10, 14)))
    numbers, found = find_instances(plate, UNIT, 300.0, CORE_DEPTH_MM)
    np.testing.assert_array_equal(numbers, plate)
    assert [i.volume_mm3 for i in found] == [1600.0]


@pytest.mark.parametrize(("min_mm3", "pieces"), [(300.0, 1), (100.0, 1), (30.0, 2)])
def test_small_core_does_not_split(min_mm3, pieces):
    knob = (slice(4, 12), slice(4, 12), slice(20, 28))  # 8 x 8 x 8: a core of 2 x 2 x 2, joined by a stem
    mask = mask_of(cube(0, 16), (slice(6, 10), slice(6, 10), slice(16, 20)), knob)
    assert len(find_instances(mask, UNIT, min_mm3, 3.0)[1]) == pieces


def test_joined_thin_and_whole_pieces_beside_each_other():
    chain = [cube(0, 10), cube(10, 12, slice(6, 10)), cube(12, 22), cube(22, 24, slice(6, 10)), cube(24, 34)]
    plate, block = (slice(16, 20), slice(0, 16), slice(0, 40)), cube(37, 47)
    mask = mask_of(*chain, plate, block)
    numbers, found = find_instances(mask, UNIT, 300.0, CORE_DEPTH_MM)
    assert [i.volume_mm3 for i in found] == [1440.0, 1456.0, 2560.0, 1472.0, 1456.0]  # block, top, plate, middle, bottom: stems halved
    assert [int(n) for n in numbers[[8, 8, 18, 8, 8], 8, [40, 30, 20, 17, 5]]] == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(numbers > 0, mask)
    for instance in found:  # what the list says is what the map holds
        assert instance.volume_mm3 == np.count_nonzero(numbers == instance.number)
        np.testing.assert_allclose(instance.centre_mm, ndimage.center_of_mass(numbers == instance.number))


def test_every_voxel_keeps_a_number():
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(40, 44, 48)), 3.0)
    mask = smooth > 0.0  # half of the grid, a sponge
    numbers, found = find_instances(mask, (1.0, 1.0, 1.2), 0.0, 2.0)
    np.testing.assert_array_equal(numbers > 0, mask)
    assert sorted(np.unique(numbers[mask])) == list(range(1, len(found) + 1))
    assert len(found) > ndimage.label(mask)[1]  # some were joined
    heights = [i.centre_mm[2] for i in found]
    assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize("depth", [0.0, CORE_DEPTH_MM])
def test_empty_mask(depth):
    numbers, found = find_instances(np.zeros((3, 4, 5), bool), UNIT, 300.0, depth)
    assert numbers.shape == (3, 4, 5)
    assert numbers.dtype == np.int32
    assert not numbers.any()
    assert found == []


def test_nothing_large_enough():
    numbers, found = find_instances(mask_of(cube(0, 2)), UNIT, 300.0, CORE_DEPTH_MM)
    assert not numbers.any()
    assert found == []


def test_mask_that_fills_the_grid_and_input_unchanged():
    mask = np.ones((20, 20, 20), bool)
    mask.setflags(write=False)
    numbers, found = find_instances(mask, UNIT, 300.0, CORE_DEPTH_MM)
    assert (numbers == 1).all()
    np.testing.assert_allclose(found[0].centre_mm, (9.5, 9.5, 9.5))


def fused_pair(height: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Three boxes of 10 x 10 x 10 and one of twice that height, whose lower `share` has another level."""
    mask, levels = np.zeros((10, 10, 70), bool), np.zeros((10, 10, 70), int)
    for start in (0, 12, 24):
        mask[:, :, start : start + 10] = True
    mask[:, :, 40 : 40 + height] = True
    levels[:, :, 40 : 40 + round(share * height)] = 7
    levels[:, :, 40 + round(share * height) :] = 6
    levels[4, 4, 41] = 3  # a stray voxel goes with its neighbours
    return mask, levels


@pytest.mark.parametrize(
    ("height", "share", "volumes"), [(20, 0.5, [1000] * 5), (20, 0.1, [2000, 1000, 1000, 1000]), (12, 0.5, [1200, 1000, 1000, 1000])]
)
def test_a_large_piece_is_divided_among_its_levels(height, share, volumes):
    mask, levels = fused_pair(height, share)
    numbers, found = find_instances(mask, (1.0, 1.0, 1.0), 100, 3.0, lambda voxels: levels[voxels])
    assert [i.volume_mm3 for i in found] == volumes
    assert (numbers > 0).sum() == mask.sum()
    assert len(find_instances(mask, (1.0, 1.0, 1.0), 100, 3.0)[1]) == 4


def test_grown_reaches_over_edges_and_corners():
    mask, expected = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    mask[0, 2, 2] = mask[3, 4, 5] = True
    expected[0:2, 1:4, 1:4] = expected[2:4, 3:5, 4:6] = True
    before = mask.copy()
    np.testing.assert_array_equal(grown(mask), expected)
    np.testing.assert_array_equal(mask, before)


def test_touching_bodies_of_a_single_slice():
    mask = np.zeros((1, 40, 50), bool)
    mask[0, 5:35, 2:22] = mask[0, 5:35, 24:44] = True
    mask[0, 18:22, 22:24] = True  # a bridge of 4 mm
    numbers, found = find_instances(mask, (4.0, 1.0, 1.0), 300.0, core_depth_mm=3.0)
    assert len(found) == 2
    assert numbers[0, 10, 40] == 1
    assert numbers[0, 10, 5] == 2
