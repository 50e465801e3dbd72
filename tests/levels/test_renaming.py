"""Names counted from the lowest body, on a column of boxes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import fails
from voting_column import DISCS, LUMBAR, SPACING, TABLE, truth

from scripts.common.errors import CallError
from scripts.levels.renaming import rename_levels

TURNED = np.diag([-SPACING[0], SPACING[1], -SPACING[2], 1.0])  # stored from left to right and from head to feet
ABOVE = ["T12", *LUMBAR[:-1]]
SIX = ["L2", "L3", "L4", "L5", "L6", "S1"]
FOUR = ["T12", "L1", "L2", "L3", "L4", "S1"]


def mask(levels: list[str], discs: list[str], places: list[int] | None = None) -> np.ndarray:
    """Bodies from top to bottom, a disc below each; where there are gaps, at these places."""
    places = places or list(range(len(levels)))
    return truth(dict(zip(places, levels)), dict(zip(places, discs))).astype(np.uint8)


def discs_below(levels: list[str]) -> list[str]:
    of_body = {s.name.split("/")[0]: s.name for s in TABLE if s.is_disc}
    return [of_body[level] for level in levels if level in of_body]


@pytest.mark.parametrize(
    ("lowest", "lumbar", "before", "after"),
    [
        ("L5", 5, LUMBAR, ABOVE),
        ("S1", 5, ABOVE, LUMBAR),
        ("", 6, LUMBAR, SIX),
        ("S1", 6, ABOVE, SIX),
        ("", 5, SIX, LUMBAR),
        ("L6", 6, LUMBAR, ["L1", "L2", "L3", "L4", "L5", "L6"]),
        ("", 4, LUMBAR, FOUR),
        ("", 5, FOUR, LUMBAR),
        ("T12", 5, ["L1", "L2", "L3"], ["T10", "T11", "T12"]),
        ("L4", 0, FOUR, ["T11", "T12", "L1", "L2", "L3", "L4"]),  # as many as it has
        ("L6", 0, SIX, ["L1", *SIX[:-1]]),
    ],
)
@pytest.mark.parametrize("affine", [np.diag([*SPACING, 1.0]), TURNED], ids=["ras", "turned"])
def test_all_names_shift(lowest, lumbar, before, after, affine):
    label = mask(before, discs_below(before))
    original = label.copy()
    renamed, lost = rename_levels(label if affine[0, 0] > 0 else label[::-1, :, ::-1], affine, lowest, lumbar)
    if affine[0, 0] < 0:
        renamed = renamed[::-1, :, ::-1]
    np.testing.assert_array_equal(renamed, mask(after, discs_below(after)[: len(discs_below(before))]))
    np.testing.assert_array_equal(label, original)
    assert renamed.dtype == np.uint8
    assert lost == [name for name, body in zip(discs_below(before), after) if not discs_below([body])]


def test_a_gap_stays():
    places = [0, 1, 3, 4]
    renamed, lost = rename_levels(mask(["L1", "L2", "L4", "L5"], [], places), np.eye(4), "S1", 5)
    np.testing.assert_array_equal(renamed, mask(["L2", "L3", "L5", "S1"], [], places))
    assert not lost


def test_l5_that_is_missing_is_no_spine_of_four():
    """S1 lies two steps below L4: L5 is not in the mask, but in the patient."""
    places = [0, 1, 2, 3, 5]
    levels = ["L1", "L2", "L3", "L4", "S1"]
    renamed, _ = rename_levels(mask(levels, discs_below(levels), places), np.diag([*SPACING, 1.0]), "L5", 5)
    np.testing.assert_array_equal(renamed, mask(["T12", "L1", "L2", "L3", "L5"], discs_below(["T12", "L1", "L2", "L3"]), places))


def test_l4_and_s1_alone():
    """64 mm apart, as wherever L5 lies between them; 38 mm apart they are neighbours."""
    for places, lumbar, expected in (([0, 64 / 24], 5, ["L4", "S1"]), ([0, 38 / 24], 5, ["L5", "S1"])):
        label = truth(dict(zip(places, ["L4", "S1"])), {}).astype(np.uint8)
        renamed, _ = rename_levels(label, np.diag([*SPACING, 1.0]), "", lumbar)
        assert [TABLE[c].name for c in np.unique(renamed)[1:]] == expected


def test_a_disc_that_has_no_name_at_its_new_place_goes():
    levels = LUMBAR[:-1]
    renamed, lost = rename_levels(mask(levels, DISCS), np.diag([*SPACING, 1.0]), "S1", 5)
    np.testing.assert_array_equal(renamed, mask(LUMBAR[1:], discs_below(LUMBAR[1:])))
    assert lost == ["L5/S1"]


def test_what_cannot_be():
    label = mask(LUMBAR, DISCS)
    with fails("mask: with T11 as the lowest body, what is L1 now would lie above T8, where names end"):
        rename_levels(label, np.diag([*SPACING, 1.0]), "T11", 5)
    with fails("a_seg.nii.gz: there is no vertebral body to count from"):
        rename_levels(np.zeros((3, 3, 3), np.uint8), np.eye(4), "L5", 5, "a_seg.nii.gz")
    for lowest, lumbar, message in (
        ("L6", 5, "--lowest L6 --lumbar 5: choose one of T8, T9, T10, T11, T12, L1, L2, L3, L4, L5, S1. With --lumbar 6 there is L6."),
        ("L5", 4, "--lowest L5 --lumbar 4: choose one of T8, T9, T10, T11, T12, L1, L2, L3, L4, S1. With --lumbar 5 there is L5."),
        ("L1/L2", 0, "--lowest L1/L2: choose one of T8, "),
        ("S1", 7, "--lumbar 7: choose one of 4, 5, 6"),
        ("S1", "five", "--lumbar five: choose one of 4, 5, 6"),
    ):
        with pytest.raises(CallError, match=f"^{re.escape(message)}"):
            rename_levels(label, np.eye(4), lowest, lumbar)
