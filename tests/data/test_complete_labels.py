"""The geometry of labelled neighbours completes a label map: on boxes voxel by voxel, on phantoms measured."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from scripts.data.complete_labels import BEYOND, NO_BODY, NO_DISC, UNKNOWN, complete_labels
from scripts.labels import encode, label_table, structure
from scripts.phantoms.phantom import draw_phantom

IS_DISC = np.array([s.is_disc for s in label_table()] + [False] * (256 - len(label_table())))
SPACINGS = [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (0.9, 2.5, 1.5), (1.5, 0.8, 3.0)]
BODY_MM, GAP_MM, SIDE_MM = 18.0, 6.0, 12.0


def channel(name: str) -> int:
    return structure(name).channel


def labelled(*names: str, group: str = "") -> np.ndarray:
    """Booleans per channel: background, these structures and all of a group."""
    return np.array([s.channel == 0 or s.name in names or s.kind == group for s in label_table()])


def column(*names: str, spacing=(1.0, 1.0, 1.0), height_mm=BODY_MM, gap_mm=GAP_MM, side_mm=SIDE_MM, ends_mm=12.0) -> np.ndarray:
    """Boxes of 27 x 21 mm above each other, the last one lowest (at the start of the third axis)."""
    wide, deep = round(27 / spacing[0]), round(21 / spacing[1])
    tall, gap, ends = (max(1, round(mm / spacing[2])) for mm in (height_mm, gap_mm, ends_mm))
    x, y = (round(side_mm / s) for s in spacing[:2])
    label = np.zeros((wide + 2 * x, deep + 2 * y, len(names) * (tall + gap) - gap + 2 * ends), np.uint8)
    for i, name in enumerate(reversed(names)):
        start = ends + i * (tall + gap)
        label[x : x + wide, y : y + deep, start : start + tall] = channel(name)
    return label


def between(label: np.ndarray, upper: int, lower: int, spacing, disc: int = 0) -> np.ndarray:
    """Mark by hand what lies between two boxes: beside the gap, the nearest points of both are their edges."""
    box = np.argwhere(label == upper)
    below = np.argwhere(label == lower)[:, 2].max()
    result, possible = label.copy(), np.zeros(label.shape, bool)
    for x, y, z in np.argwhere(label == 0):
        if below < z < box[:, 2].min():
            out = [max(box[:, a].min() - i, i - box[:, a].max(), 0) * spacing[a] for a, i in enumerate((x, y))]
            d, up, down = np.hypot(*out), (box[:, 2].min() - z) * spacing[2], (z - below) * spacing[2]
            cosine = (d**2 - up * down) / np.hypot(d, up) / np.hypot(d, down)
            possible[x, y, z] = cosine < -0.1
            result[x, y, z] = disc if disc and cosine < -0.92 and np.hypot(d, min(up, down)) > 1.5 else 0
    result[ndimage.binary_dilation(possible) & (result == 0)] = NO_BODY if disc else NO_DISC
    return result


@pytest.mark.parametrize("spacing", SPACINGS)
def test_disc_between_two_bodies(spacing):
    label, known = column("L3", "L4", spacing=spacing), labelled(group="body")
    copies = label.copy(), known.copy()
    result, now_known = complete_labels(label, known, spacing)
    np.testing.assert_array_equal(result, between(label, channel("L3"), channel("L4"), spacing, channel("L3/L4")))
    assert set(np.unique(result)) == {0, channel("L3"), channel("L4"), channel("L3/L4"), NO_BODY}
    assert result.dtype == np.uint8
    assert np.flatnonzero(now_known != known).tolist() == [channel("L3/L4")]
    np.testing.assert_array_equal(label, copies[0])
    np.testing.assert_array_equal(known, copies[1])


def test_rows_beside_the_gap_by_hand():
    # five voxels of gap; d voxels beside it, h above the lower and 6 - h below the upper body: cos = (d2 - h(6-h)) / |..| |..|
    result, _ = complete_labels(column("L3", "L4", gap_mm=5), labelled(group="body"), (1.0, 1.0, 1.0))
    start = 12 + 18  # the first layer above L4
    # voxels that may be disc, one further than the cosine says: at h = 3, d = 3 it is 0, at h = 1, d = 2 it is -0.08
    beside = {0: 1, 1: 2, 2: 3, 3: 3, 4: 3, 5: 2, 6: 1}
    for h, possible in beside.items():
        row = result[25, :, start + h - 1]
        side = [0] * (12 - possible) + [NO_BODY] * possible
        assert [*row[:12], *row[-12:]] == [*side, *side[::-1]]
        assert set(row[12:-12]) == {{0: 9, 1: NO_BODY, 5: NO_BODY, 6: 8}.get(h, 20)}  # 1 mm from a body: its end-plate
    assert not result[25, :12, : start - 2].any()  # beside the bodies: certain background
    assert not result[25, :, : 12 - 1].any()


def test_order_of_the_axes_does_not_matter():
    label, spacing = column("L3", "L4", spacing=(0.9, 2.5, 1.5)), (0.9, 2.5, 1.5)
    expected, _ = complete_labels(label, labelled("L3", "L4"), spacing)
    turned, _ = complete_labels(label.transpose(2, 0, 1)[::-1], labelled("L3", "L4"), (1.5, 0.9, 2.5))  # and upside down
    np.testing.assert_array_equal(turned[::-1].transpose(1, 2, 0), expected)


def test_a_labelled_disc_is_left_alone():
    label = column("L3", "L4")
    result, known = complete_labels(label, labelled("L3/L4", group="body"), (1.0, 1.0, 1.0))  # it is not there: herniated, fused
    np.testing.assert_array_equal(result, label)
    assert known[channel("L3/L4")]
    label[20:25, 20:25, 31:34] = channel("L3/L4")
    result, _ = complete_labels(label, labelled("L3/L4", group="body"), (1.0, 1.0, 1.0))
    assert (result[label > 0] == label[label > 0]).all()
    assert set(np.unique(result[result != label])) == {NO_DISC, BEYOND}  # the discs above and below are not labelled


def test_a_gap_in_the_labels_is_unknown():
    label = column("L3", "L4", "L5")
    label[label == channel("L4")] = 0
    known = labelled("L3", "L5")
    result, now_known = complete_labels(label, known, (1.0, 1.0, 1.0))
    hidden = column("L3", "L4", "L5") == channel("L4")
    assert (result[hidden] == UNKNOWN).all()
    assert (result[label > 0] == label[label > 0]).all()
    np.testing.assert_array_equal(now_known, known)
    everything = labelled(group="body")  # L4 was looked for, and is not there
    assert not (complete_labels(label, everything, (1.0, 1.0, 1.0))[0] == UNKNOWN).any()


def test_a_single_labelled_level_says_nothing_about_its_neighbours():
    label = column("L3", "L4", "L5")
    outer = (label == channel("L3")) | (label == channel("L5"))
    label[outer] = 0
    result, _ = complete_labels(label, labelled("L4"), (1.0, 1.0, 1.0))
    assert (result[outer] == BEYOND).all()
    assert (result[label > 0] == channel("L4")).all()
    assert result[1, 1, 45] == 0  # beside it there is no level


def test_other_levels_of_a_column():
    label = column("L1", "L2", "L3", "L5")  # L4 is missing
    result, known = complete_labels(label, labelled("L1/L2", group="body"), (1.0, 1.0, 1.0))
    assert np.unique(result[result != label]).tolist() == [channel("L2/L3"), NO_BODY]
    gaps = [result[25, 22, 12 + 18 * i + 6 * (i - 1) : 12 + (18 + 6) * i] for i in (3, 2, 1)]  # upper, middle, lower
    assert [np.unique(gap).tolist() for gap in gaps] == [[0], [channel("L2/L3"), NO_BODY], [0]]
    assert known[channel("L2/L3")]
    assert not known[[channel("L3/L4"), channel("L4/L5")]].any()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_between_two_discs_may_be_a_body(spacing):
    label, known = column("L3/L4", "L4/L5", spacing=spacing, height_mm=GAP_MM, gap_mm=BODY_MM), labelled(group="disc")
    result, now_known = complete_labels(label, known, spacing)
    np.testing.assert_array_equal(result, between(label, channel("L3/L4"), channel("L4/L5"), spacing))
    assert set(np.unique(result)) == {0, channel("L3/L4"), channel("L4/L5"), NO_DISC}
    np.testing.assert_array_equal(now_known, known)
    known[channel("L4")] = True
    np.testing.assert_array_equal(complete_labels(label, known, spacing)[0], label)


def test_without_neighbours_nothing_changes():
    for label in (np.zeros((4, 5, 6), np.uint8), column("L4"), column("L2", "L4")):
        known = labelled(group="body")
        result, now_known = complete_labels(label, known, (1.0, 1.0, 1.0))
        np.testing.assert_array_equal(result, label)
        np.testing.assert_array_equal(now_known, known)


# beyond the last labelled level


@pytest.mark.parametrize(
    ("names", "also_labelled", "above", "below"),
    [
        (("L3", "L4"), (), True, True),
        (("L3", "L4"), ("L2",), False, True),
        (("L3", "L4"), ("L5",), True, False),
        (("L3", "L4"), ("L2", "L5"), False, False),
        (("L5", "S1"), (), True, False),  # nothing follows S1
        (("T8", "T9"), (), False, True),  # and nothing precedes T8
        (("L2", "L3", "L4"), (), True, True),
        (("L3/L4", "L4/L5"), (), True, True),
        (("L3/L4", "L4/L5"), ("L2/L3", "L5/S1"), False, False),
    ],
)
def test_beyond_the_last_labelled_level(names, also_labelled, above, below):
    spacing = (4.0, 2.0, 1.5)
    label = column(*names, spacing=spacing, side_mm=70, ends_mm=16)
    result, _ = complete_labels(label, labelled(*names, *also_labelled), spacing)
    present = np.argwhere(label)
    centre = present.mean(0)
    x, y = np.indices(label.shape[:2])
    near = np.hypot((x - centre[0]) * 4, (y - centre[1]) * 2) < 55
    assert not near.all()  # some of the grid is farther away
    top, bottom, ended = present[:, 2].max(), present[:, 2].min(), NO_DISC if "/" in names[0] else NO_BODY
    expected = np.zeros(label.shape, bool)
    expected[..., top + 2 :] = near[..., None] & above
    expected[..., : bottom - 1] = near[..., None] & below
    np.testing.assert_array_equal(result == BEYOND, expected)
    for layer, follows in ((top, above), (top + 1, above), (bottom, below), (bottom - 1, below)):  # what is labelled has ended
        assert ((result[..., layer] == ended) == (near & follows & (label[..., layer] == 0))).all()


def test_beyond_follows_a_tilted_end_plate():
    spacing, tilt = np.array([3.0, 1.0, 1.0]), np.radians(20)
    x, y, z = (np.indices((14, 70, 90)).T * spacing - [19.5, 34, 35]).T  # mm from the centre of L4
    front, up = y * np.cos(tilt) - z * np.sin(tilt), y * np.sin(tilt) + z * np.cos(tilt)
    section = (np.abs(x) < 14) & (np.abs(front) < 15)
    label = np.select([section & (np.abs(up) < 9), section & (np.abs(up - 24) < 9)], [channel("L4"), channel("L3")]).astype(np.uint8)
    result, _ = complete_labels(label, labelled("L3", "L4", "L2"), tuple(spacing))
    background = result != channel("L4")
    near = np.hypot(x, front) < 53
    assert (result[background & near & (up < -12)] == BEYOND).all()  # the end-plate, at -9, is found to a millimetre
    assert (result[background & near & (up < -10) & (up > -10.5)] == NO_BODY).all()
    assert (result[up > -9] != BEYOND).all()


SPECKS = [(1, 1, 1), (2, 1, 1), (1, 3, 1), (2, 2, 1)]  # voxels


@pytest.mark.parametrize("size", SPECKS)
@pytest.mark.parametrize(("also_labelled", "above", "below"), [("L2", False, True), ("L4", True, False)])
def test_beyond_a_speck(size, also_labelled, above, below):
    label = np.zeros((40, 60, 60), np.uint8)
    label[tuple(slice(20, 20 + n) for n in size)] = channel("L3")
    result, _ = complete_labels(label, labelled("L3", also_labelled), (1.0, 1.0, 1.0))
    x, y = np.indices(label.shape[:2]) - np.array([20 + (n - 1) / 2 for n in size[:2]]).reshape(2, 1, 1)
    near = np.hypot(x, y) < 55
    expected = np.zeros(label.shape, bool)
    expected[..., 22:] = near[..., None] & above
    expected[..., :19] = near[..., None] & below
    np.testing.assert_array_equal(result == BEYOND, expected)
    assert not (result[..., 21:] == NO_BODY).any() or above
    assert not (result[..., :20] == NO_BODY).any() or below


def test_beyond_two_structures_of_one_centre():
    label = np.zeros((9, 9, 9), np.uint8)
    label[3:6, 3:6, 3:6] = channel("L3")
    label[4, 4, 4] = channel("L4")
    result, _ = complete_labels(label, labelled("L3", "L4", "L2"), (1.0, 1.0, 1.0))
    assert (result[..., :3] == BEYOND).all()  # below L4
    assert not result[..., 6:].any()  # L2 is labelled, and is not there


# phantoms


def hide_discs(seed: int, **options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A phantom's label on a grid of 1 mm, what `complete_labels` makes of its bodies, and the discs that it found."""
    spacing = options.pop("spacing_mm", (1.0, 4.0))
    phantom = draw_phantom(seed, contrast="T2w", order="RAS", spacing_mm=spacing, **{"view": "L3", "shape": (13, 90, 130), **options})
    truth = np.repeat(encode(phantom.label), int(spacing[1]), 0)  # as the working grid resamples thick slices
    bodies = np.where(IS_DISC[truth], 0, truth)
    known = np.isin(np.arange(len(label_table())), [0, *bodies.ravel()])
    result, now_known = complete_labels(bodies, known, (1.0, 1.0, 1.0))
    return truth, result, np.flatnonzero(now_known & ~known)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hidden_discs_of_a_phantom(seed):
    truth, result, found = hide_discs(seed)
    assert [label_table()[c].name for c in found] == ["L1/L2", "L2/L3", "L3/L4", "L4/L5"]
    marked, discs = np.isin(result, found), np.isin(truth, found)
    assert (truth[marked] == result[marked]).mean() > 0.99
    assert not (IS_DISC[truth] & marked & (truth != result)).any()  # never the disc of another level
    assert (result[discs] == 0).mean() < 0.01
    assert (result[discs] == BEYOND).sum() == 0
    assert np.isin(result[discs], found).mean() > 0.3  # 0.33 to 0.37, the others may be disc
    bodies = (truth > 0) & ~IS_DISC[truth]
    np.testing.assert_array_equal(result[bodies], truth[bodies])


def test_six_lumbar_vertebrae():
    label = column("L5", "L6", "S1")
    result, _ = complete_labels(label, labelled(group="body"), (1.0, 1.0, 1.0))
    upper = between(label, channel("L5"), channel("L6"), (1.0, 1.0, 1.0), channel("L5/S1"))  # the disc below L5, as in the phantoms
    np.testing.assert_array_equal(result, between(upper, channel("L6"), channel("S1"), (1.0, 1.0, 1.0), channel("L6/S1")))
