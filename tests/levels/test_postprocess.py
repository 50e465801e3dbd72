"""Cleaning of label maps, rule by rule, on maps small enough to be read."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import ndimage

from scripts.labels import label_table, structure
from scripts.levels.postprocess import clean_label_map

L1, L2, L3, S1, DISC, DISC_2 = (structure(name).channel for name in ("L1", "L2", "L3", "S1", "L1/L2", "L2/L3"))
UNIT = (1.0, 1.0, 1.0)


def label_map(*blocks: tuple[int, slice, slice, slice], shape: tuple[int, int, int] = (12, 12, 40)) -> np.ndarray:
    """Map with rectangular blocks (channel, x, y, z); later ones lie on top."""
    label = np.zeros(shape, np.uint8)
    for channel, *box in blocks:
        label[tuple(box)] = channel
    return label


def test_largest_piece_is_kept():
    kept = (L1, slice(1, 9), slice(1, 9), slice(1, 9))  # 512 voxels
    label = label_map(kept, (L1, slice(1, 8), slice(1, 8), slice(20, 27)))  # 343 voxels: large enough, but not the largest
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label_map(kept))


def test_diagonal_neighbours_are_two_pieces():
    kept = (L1, slice(0, 8), slice(0, 8), slice(0, 8))
    label = label_map(kept, (L1, slice(8, 11), slice(8, 11), slice(8, 11)))  # they share one corner
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label_map(kept))


def test_fragment_joins_the_neighbour_that_it_touches_most():
    upper, lower = (L1, slice(0, 8), slice(0, 8), slice(20, 28)), (L2, slice(0, 8), slice(0, 8), slice(8, 16))
    far = (L3, slice(0, 8), slice(0, 8), slice(32, 40))
    box = (slice(2, 7), slice(2, 7), slice(16, 20))  # between L1 and L2, touching each on 25 faces
    more_of_l2 = (slice(2, 8), slice(2, 8), slice(16, 17))  # 36 faces below
    fragment = [(L3, *box), (L3, *more_of_l2)]
    expected = label_map(upper, lower, far, (L2, *box), (L2, *more_of_l2))
    np.testing.assert_array_equal(clean_label_map(label_map(upper, lower, far, *fragment), UNIT), expected)


@pytest.mark.parametrize(("channel", "neighbour"), [(L2, DISC), (S1, DISC), (DISC_2, L1)])
def test_fragment_never_joins_the_other_group(channel, neighbour):
    other, own = (neighbour, slice(0, 8), slice(0, 8), slice(10, 18)), (channel, slice(0, 8), slice(0, 8), slice(30, 38))
    label = label_map(other, own, (channel, slice(0, 6), slice(0, 6), slice(18, 22)))
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label_map(other, own))


def test_fragment_joins_its_own_group_past_a_larger_contact_with_the_other():
    body, disc = (L1, slice(0, 8), slice(0, 8), slice(10, 18)), (DISC, slice(0, 8), slice(0, 8), slice(22, 30))
    far = (L2, slice(0, 8), slice(0, 8), slice(31, 39))
    stem, cap = (slice(0, 3), slice(0, 3), slice(18, 20)), (slice(0, 7), slice(0, 7), slice(20, 22))
    label = label_map(body, disc, far, (L2, *stem), (L2, *cap))
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label_map(body, disc, far, (L1, *stem), (L1, *cap)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("after", [True, False])
def test_fragment_finds_its_neighbour_on_every_side(axis, after):
    along = np.zeros(36, np.uint8)  # L2, space, then L1 with three slices of L2 after or before it; the outer ones at the map's border
    along[:8], along[20:33], along[33:] = L2, L1, L2
    if not after:
        along[20:23], along[23:] = L2, L1
    expected = along.copy()
    expected[20:] = L1
    label, cleaned = (np.moveaxis(np.broadcast_to(line, (7, 7, 36)), 2, axis) for line in (along, expected))
    np.testing.assert_array_equal(clean_label_map(label, UNIT), cleaned)


def test_fragments_join_instances_not_each_other():
    body = (L1, slice(0, 8), slice(0, 8), slice(0, 8))
    first, second = (slice(0, 4), slice(0, 4), slice(8, 11)), (slice(0, 4), slice(0, 4), slice(11, 14))
    label = label_map(body, (L2, *first), (L3, *second))
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label_map(body, (L1, *first)))


def test_speck_is_dropped_even_where_it_touches():
    body, far = (L1, slice(0, 8), slice(0, 8), slice(0, 8)), (L2, slice(0, 8), slice(0, 8), slice(20, 28))
    label = label_map(body, far, (L2, slice(0, 1), slice(0, 8), slice(8, 10)), (L2, slice(1, 2), slice(0, 3), slice(8, 9)))  # 19 voxels
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label_map(body, far))
    joined = (slice(0, 1), slice(0, 8), slice(8, 10)), (slice(1, 2), slice(0, 4), slice(8, 9))  # 20
    label = label_map(body, far, *[(L2, *box) for box in joined])
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label_map(body, far, *[(L1, *box) for box in joined]))


def test_hole_is_filled():
    body = (L1, slice(1, 9), slice(1, 9), slice(1, 9))
    label = label_map(body, (0, slice(4, 6), slice(4, 6), slice(4, 6)))
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label_map(body))
    label = label_map(body, (DISC, slice(4, 6), slice(4, 6), slice(4, 6)))  # a speck inside becomes background first
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label_map(body))


def test_open_cavity_is_no_hole():
    label = label_map((L1, slice(1, 9), slice(1, 9), slice(1, 9)), (0, slice(4, 6), slice(4, 6), slice(4, 9)))
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label)


def test_another_structure_in_a_hole_stays():
    shell, hole = (L1, slice(0, 12), slice(0, 12), slice(0, 12)), (0, slice(2, 10), slice(2, 10), slice(2, 10))
    inner = (DISC, slice(2, 9), slice(2, 9), slice(2, 9))  # 343 voxels
    expected = label_map(shell, inner)
    np.testing.assert_array_equal(clean_label_map(label_map(shell, hole, inner), UNIT), expected)


def test_small_instance_is_dropped():
    label = label_map((L1, slice(0, 5), slice(0, 6), slice(0, 10)))  # 300 voxels
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label)
    assert not clean_label_map(label, UNIT, min_instance_mm3=300.1).any()
    label[0, 0, 0] = 0
    assert not clean_label_map(label, UNIT).any()


def test_small_instance_joins_the_neighbour_that_it_touches():
    body, small = (L1, slice(0, 8), slice(0, 8), slice(0, 8)), (slice(0, 5), slice(0, 5), slice(8, 12))
    np.testing.assert_array_equal(clean_label_map(label_map(body, (L2, *small)), UNIT), label_map(body, (L1, *small)))


def test_thresholds_are_mm3_not_voxels():
    body = (L1, slice(0, 8), slice(0, 8), slice(0, 8))
    small = (L2, slice(0, 4), slice(0, 4), slice(20, 24))  # 64 voxels
    fragment = (L2, slice(2, 3), slice(0, 5), slice(8, 9))  # 5 voxels on the body
    label = label_map(body, small, fragment)
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label_map(body))  # 64 and 5 mm3
    doubled = label_map(body, small, (L1, *fragment[1:]))  # 512 and 40 mm3
    np.testing.assert_array_equal(clean_label_map(label, (2.0, 2.0, 2.0)), doubled)
    np.testing.assert_array_equal(clean_label_map(label, (4.0, 2.0, 1.0)), doubled)  # the volume counts, not one of the sides
    np.testing.assert_array_equal(clean_label_map(label, (2.0, 2.0, 1.0)), label_map(body, (L1, *fragment[1:])))  # 256 and 20 mm3


def noisy_map() -> np.ndarray:
    """Large blobs of four levels with fragments, specks and holes."""
    noise = np.random.default_rng(0).normal(size=(6, 18, 20, 22))
    smooth = np.stack([ndimage.gaussian_filter(n, 2.0) for n in noise])
    channels = np.array([0, 0, L1, L2, DISC, DISC_2], np.uint8)
    label = channels[smooth.argmax(0)]
    rough = np.random.default_rng(1).random(label.shape) < 0.03
    label[rough] = np.random.default_rng(2).choice(channels, rough.sum())
    return label


def test_flipped_and_turned_maps_are_cleaned_alike():
    label, spacing = noisy_map(), np.array([3.0, 0.8, 1.1])
    cleaned = clean_label_map(label, spacing)
    assert (cleaned != label).any()
    assert len(np.unique(cleaned)) == 5
    for axes in permutations(range(3)):
        np.testing.assert_array_equal(clean_label_map(label.transpose(axes), spacing[list(axes)]), cleaned.transpose(axes))
    for axis in range(3):
        np.testing.assert_array_equal(clean_label_map(np.flip(label, axis), spacing), np.flip(cleaned, axis))


def test_clean_map_has_one_piece_per_level_and_stays():
    cleaned = clean_label_map(noisy_map(), (1.0, 1.0, 2.0))
    for channel in np.unique(cleaned[cleaned > 0]):
        assert ndimage.label(cleaned == channel)[1] == 1
    np.testing.assert_array_equal(clean_label_map(cleaned, (1.0, 1.0, 2.0)), cleaned)


def test_input_is_not_changed():
    label = noisy_map()
    copy = label.copy()
    label.setflags(write=False)
    assert clean_label_map(label, UNIT) is not label
    np.testing.assert_array_equal(label, copy)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_empty_and_typed_maps(dtype):
    empty = clean_label_map(np.zeros((3, 4, 5), dtype), UNIT)
    assert empty.dtype == dtype
    assert empty.shape == (3, 4, 5)
    assert not empty.any()
    label = label_map((len(label_table()) - 1, slice(0, 8), slice(0, 8), slice(0, 8))).astype(dtype)  # the last channel
    np.testing.assert_array_equal(clean_label_map(label, UNIT), label)


def test_single_slice():
    label = np.zeros((1, 20, 20), np.uint8)
    label[0, :10, :10], label[0, 15:18, 15:18] = L1, L1
    expected = label.copy()
    expected[0, 15:, 15:] = 0
    np.testing.assert_array_equal(clean_label_map(label, (4.0, 1.0, 1.0)), expected)
