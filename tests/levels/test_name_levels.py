"""Levels that agree within every vertebra, on a column of boxes whose voxels vote as they are told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from voting_column import (
    CHANNEL,
    DISCS,
    LUMBAR,
    MIN_MM3,
    OTHER,
    SHAPE,
    SPACING,
    TABLE,
    body_box,
    column,
    dense,
    disc_box,
    paint,
    row,
    truth,
)

from scripts.levels.logits import SpineLogits
from scripts.levels.name_levels import NEVER, name_levels
from scripts.levels.restore import ClassLogits, restore_label_map


def name(logits: torch.Tensor) -> tuple[torch.Tensor, dict]:
    found = name_levels(SpineLogits.of(logits), np.diag([*SPACING, 1]), MIN_MM3)
    assert found.channel_map.shape == logits.shape[1:]
    assert found.logits.background.dtype == torch.float32
    json.dumps(found.report)
    result = dense(found)
    np.testing.assert_array_equal(result.argmax(0).numpy(), found.channel_map)
    return result, found.report


def named(logits: torch.Tensor) -> tuple[np.ndarray, dict]:
    result, report = name(logits)
    return result.argmax(0).numpy(), report


# names of bodies


def test_clear_column_stays_as_it_is():
    label, report = named(column(LUMBAR, DISCS))
    np.testing.assert_array_equal(label, truth(dict(enumerate(LUMBAR)), dict(enumerate(DISCS))))
    assert report["sequence_probability"] > 0.95
    assert report["uncertain"] is False
    assert [r["name"] for r in report["structures"]] == [*LUMBAR, *DISCS]  # in the order of the table
    assert all(r["mean_entropy"] == pytest.approx(0, abs=1e-6) and r["vote"] == pytest.approx(1) for r in report["structures"])


@pytest.mark.parametrize(
    "certainty",
    [
        0.9,
        0.999,
        1 - 1e-9,
    ],
)
def test_a_vertebra_that_is_half_another_gets_one_name(certainty):
    logits = column(LUMBAR, DISCS)
    *side, along = body_box(2)
    paint(logits, (*side, slice(along.start, along.start + 5)), L2=certainty, L3=1 - certainty)  # five of the nine slices
    label, report = named(logits)
    np.testing.assert_array_equal(label, truth(dict(enumerate(LUMBAR)), dict(enumerate(DISCS))))
    assert row(report, "L3")["vote"] == pytest.approx(4 / 9 + 5 / 9 * (1 - certainty))


def test_entropy_and_vote_by_hand():
    logits = column(LUMBAR, DISCS)
    paint(logits, body_box(2), L3=0.5, L2=0.5)
    *side, along = body_box(3)
    paint(logits, (*side, slice(along.start, along.start + 3)), L4=0.25, L5=0.25, background=0.5)  # background: the tie is its
    paint(logits, (*side, slice(along.start, along.start + 6)), L4=0.3, L5=0.3, background=0.4)  # six of nine slices
    label, report = named(logits)
    np.testing.assert_array_equal(label, truth(dict(enumerate(LUMBAR)), dict(enumerate(DISCS))))
    assert row(report, "L3") == {"name": "L3", "mean_entropy": pytest.approx(np.log(2)), "vote": pytest.approx(0.5)}
    entropy = -(0.6 * np.log(0.3) + 0.4 * np.log(0.4)) * 6 / 9
    assert row(report, "L4") == {"name": "L4", "mean_entropy": pytest.approx(entropy), "vote": pytest.approx((6 * 0.5 + 3) / 9)}


@pytest.mark.parametrize(("witnesses", "tolerance"), [(500, 0.02), (1, 1.0)], ids=["every tenth voxel", "one voxel of each"])
def test_a_part_of_the_voxels_is_asked(monkeypatch, witnesses, tolerance):
    logits = column(LUMBAR, DISCS)
    *side, along = body_box(2)
    paint(logits, (*side, slice(along.start, along.start + 3)), L3=0.4, L2=0.6)
    monkeypatch.setattr("scripts.levels.name_levels.MIN_VOTING_VOXELS", witnesses)
    label, report = named(logits)
    np.testing.assert_array_equal(label, truth(dict(enumerate(LUMBAR)), dict(enumerate(DISCS))))
    assert [r["name"] for r in report["structures"]] == [*LUMBAR, *DISCS]
    assert row(report, "L3")["vote"] == pytest.approx((6 + 3 * 0.4) / 9, abs=tolerance)
    assert row(report, "L4")["vote"] == pytest.approx(1)


def test_touching_bodies_are_two_vertebrae():
    logits = column(LUMBAR, [])
    bridge = (slice(6, 10), slice(15, 19), disc_box(2)[2])  # 8 x 8 mm between L3 and L4
    paint(logits, bridge, L3=1)
    label, _ = named(logits)
    expected = truth(dict(enumerate(LUMBAR)), {})
    expected[bridge] = label[bridge]
    np.testing.assert_array_equal(label, expected)
    assert set(np.unique(label[bridge])) == {CHANNEL["L3"], CHANNEL["L4"]}


@pytest.mark.parametrize("place", [2, 2.3])  # the disc below L4 in the upper and in the lower half of the way to S1
def test_disc_below_l4_of_four_lumbar_vertebrae(place):
    logits = column(["L2", "L3", "L4"], ["L2/L3", "L3/L4"])
    paint(logits, body_box(3.3), S1=1)
    paint(logits, disc_box(place), **{"L5/S1": 1})
    label, _ = named(logits)
    assert np.unique(label[disc_box(place)]).tolist() == [CHANNEL["L4/L5"]]
    assert [TABLE[c].name for c in np.unique(label) if c] == ["L2", "L3", "L4", "S1", "L2/L3", "L3/L4", "L4/L5"]


def test_view_without_a_sacrum_is_uncertain():
    levels = LUMBAR[:4]
    logits = column(levels, [])
    for place, (name, above) in enumerate(zip(levels, ["T12", *levels])):
        paint(logits, body_box(place), **{name: 0.55, above: 0.45})
    label, report = named(logits)
    np.testing.assert_array_equal(label, truth(dict(enumerate(levels)), {}))
    assert report["uncertain"] is True
    assert report["sequence_probability"] < 0.9
    assert report["runner_up"] == ["T12", "L1", "L2", "L3"]
    ratio = report["runner_up_probability"] / report["sequence_probability"]
    assert ratio == pytest.approx((0.45 / 0.55) ** 4, rel=0.15)


@pytest.mark.parametrize(("levels", "highest"), [(LUMBAR[:4], 0.92), (["T8", "T9", "T10", "T11"], 0.955)])
def test_without_a_sacrum_sure_votes_are_uncertain_too(levels, highest):
    report = named(column(levels, []))[1]
    assert 0.9 < report["sequence_probability"] < highest  # all of them may be a level off, at the end of the table in one direction
    assert report["uncertain"] is True


def test_names_with_a_gap_are_uncertain():
    """Even if the votes are sure: a vertebra was missed, or the names are wrong."""
    logits = column(LUMBAR, DISCS)
    for box in (body_box(2), disc_box(1), disc_box(2)):
        logits[(slice(1, None), *box)], logits[(0, *box)] = OTHER, 0
    report = named(logits)[1]
    assert report["sequence_probability"] > 0.96
    assert report["uncertain"] is True


def test_missing_vertebra_leaves_its_name_out():
    logits = column(LUMBAR, DISCS)
    paint(logits, body_box(2), background=1)
    label, report = named(logits)
    np.testing.assert_array_equal(label, truth({p: n for p, n in enumerate(LUMBAR) if n != "L3"}, dict(enumerate(DISCS))))
    assert "L3" not in [r["name"] for r in report["structures"]]


def test_nothing_but_background():
    logits = column([], [])
    result, report = name(logits)
    assert not result.argmax(0).any()
    assert report["structures"] == []
    assert report["runner_up"] == []


# names of discs


def test_discs_follow_their_bodies_not_their_votes():
    logits = column(LUMBAR, ["T8/T9"] * 5)
    label, report = named(logits)
    np.testing.assert_array_equal(label, truth(dict(enumerate(LUMBAR)), dict(enumerate(DISCS))))
    assert row(report, "L5/S1")["vote"] == pytest.approx(0, abs=1e-6)


def test_end_discs_are_named_after_the_first_and_the_last_body():
    levels = ["T12", "L1", "L2", "L3", "L4", "L5"]
    wrong = ["L6/S1"] * 7  # with one above the top and one below the last
    logits = column(levels, wrong, first_disc=-1)
    # the disc above the top lies in the place of the disc below a body above it
    expected = ["T11/T12", "T12/L1", "L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"]
    label, _ = named(logits)
    np.testing.assert_array_equal(label, truth(dict(enumerate(levels)), dict(enumerate(expected, start=-1))))


def test_no_disc_lies_below_the_sacrum_nor_above_the_first_level():
    label, _ = named(column(LUMBAR, [*DISCS, "L6/S1"]))
    np.testing.assert_array_equal(label, truth(dict(enumerate(LUMBAR)), dict(enumerate(DISCS))))
    levels = ["T8", "T9", "T10"]
    label, _ = named(column(levels, ["T8/T9"] * 3, first_disc=-1))
    np.testing.assert_array_equal(label, truth(dict(enumerate(levels)), {0: "T8/T9", 1: "T9/T10"}))


def test_discs_of_six_lumbar_vertebrae():
    levels = ["L2", "L3", "L4", "L5", "L6", "S1"]
    label, _ = named(column(levels, ["T8/T9"] * 5))
    expected = ["L2/L3", "L3/L4", "L4/L5", "L5/S1", "L6/S1"]  # VerSe counts a disc by the vertebra above it
    np.testing.assert_array_equal(label, truth(dict(enumerate(levels)), dict(enumerate(expected))))


def test_disc_above_the_sacrum_where_l5_is_missing():
    logits = column(LUMBAR, ["T8/T9"] * 5)
    paint(logits, body_box(4), background=1)
    label, _ = named(logits)
    assert (label[disc_box(3)] == CHANNEL["L4/L5"]).all()
    assert (label[body_box(5)] == CHANNEL["S1"]).all()


def test_both_discs_where_l5_is_missing():
    logits = column(LUMBAR, DISCS)
    paint(logits, body_box(4), background=1)
    label, _ = named(logits)
    np.testing.assert_array_equal(label, truth({p: n for p, n in enumerate(LUMBAR) if n != "L5"}, dict(enumerate(DISCS))))


def test_both_discs_where_l5_is_missing_above_l6():
    levels = ["L2", "L3", "L4", "L5", "L6", "S1"]
    discs = ["L2/L3", "L3/L4", "L4/L5", "L5/S1", "L6/S1"]
    logits = column(levels, discs)
    paint(logits, body_box(3), background=1)
    label, _ = named(logits)
    np.testing.assert_array_equal(label, truth({p: n for p, n in enumerate(levels) if n != "L5"}, dict(enumerate(discs))))


def test_three_discs_where_two_vertebrae_are_missing():
    logits = column(LUMBAR, DISCS)
    for place in (1, 2):
        paint(logits, body_box(place), background=1)
    label, _ = named(logits)
    expected = truth({p: n for p, n in enumerate(LUMBAR) if n not in ("L2", "L3")}, dict(enumerate(DISCS)))
    np.testing.assert_array_equal(label, expected)


def test_disc_far_from_the_column_becomes_background():
    logits = column(LUMBAR, DISCS)
    box = (slice(3, 13), slice(30, 38), slice(40, 44))  # its centre is 33 mm in front of the column
    paint(logits, box, **{"T8/T9": 1})
    label, _ = named(logits)
    assert (label[box] == 0).all()


def test_discs_beside_a_single_body_keep_their_votes():
    label, _ = named(column(["L3"], ["L2/L3", "L3/L4"], first_disc=-1))
    np.testing.assert_array_equal(label, truth({0: "L3"}, {-1: "L2/L3", 0: "L3/L4"}))


# pieces


def test_small_pieces_become_background():
    logits = column(LUMBAR, DISCS)
    expected = truth(dict(enumerate(LUMBAR)), dict(enumerate(DISCS)))
    body, disc = (slice(0, 3), slice(30, 34), slice(40, 43)), (slice(0, 3), slice(30, 34), slice(50, 53))  # 36 voxels, 288 mm3
    paint(logits, body, T9=1)
    paint(logits, disc, **{"T9/T10": 1})
    result, report = name(logits)
    np.testing.assert_array_equal(result.argmax(0).numpy(), expected)
    assert [r["name"] for r in report["structures"]] == [*LUMBAR, *DISCS]
    assert (result[(0, *body)] == 0).all()  # and surely so


@pytest.mark.parametrize("vote", ["S1", "L3"])
def test_piece_in_front_of_the_spine_becomes_background(vote):
    logits = column(LUMBAR, DISCS)
    bladder = (slice(3, 13), slice(30, 39), slice(10, 22))  # between L5 and S1, 35 mm in front of them
    paint(logits, bladder, **{vote: 1})
    label, report = named(logits)
    np.testing.assert_array_equal(label, truth(dict(enumerate(LUMBAR)), dict(enumerate(DISCS))))
    assert report["uncertain"] is False


def test_one_channel_per_instance_whatever_the_voxels_say():
    noise = torch.randn((len(TABLE), *SHAPE), generator=torch.Generator().manual_seed(0))
    logits = column(LUMBAR, DISCS).clamp(min=0)
    for place, name in enumerate(LUMBAR):
        logits[(slice(1, 13), *body_box(place))] = 3.0  # a body of any level, and a little more of the right one
        logits[(CHANNEL[name], *body_box(place))] = 4.0
    for place in range(5):
        logits[(slice(13, 24), *disc_box(place))] = 3.0
    logits[0] += 6 * (logits[1:].amax(0) == 0)
    label, _ = named(logits + noise)
    boxes = [body_box(p) for p in range(6)] + [disc_box(p) for p in range(5)]
    for box, name in zip(boxes, [*LUMBAR, *DISCS]):
        inside = label[box]
        assert set(np.unique(inside)) <= {0, CHANNEL[name]}  # noise leaves a few voxels to background
        assert (inside > 0).mean() > 0.9
    assert (label > 0).sum() <= sum(label[box].size for box in boxes) + 50


# logits


def test_logits_are_the_probability_of_the_kind():
    logits = column(LUMBAR, DISCS)
    paint(logits, body_box(2), L3=0.3, L2=0.3, background=0.3, **{"L2/L3": 0.1})
    result, _ = name(logits)
    voxel = (8, 17, body_box(2)[2].start + 4)
    assert result[(CHANNEL["L3"], *voxel)].exp() == pytest.approx(0.6)
    assert result[(0, *voxel)].exp() == pytest.approx(0.3)
    others = [c for c in range(len(TABLE)) if c not in (0, CHANNEL["L3"])]
    assert (result[(others, *voxel)] == NEVER).all()


def test_logits_reach_one_voxel_beyond_the_instance():
    logits = column(["L3"], [])
    x, y, z = body_box(0)
    around = (slice(x.start - 2, x.stop + 2), slice(y.start - 2, y.stop + 2), slice(z.start - 2, z.stop + 2))
    paint(logits, around, L3=0.2, L4=0.2, background=0.6)
    paint(logits, (x, y, z), L3=1)
    result, _ = name(logits)
    np.testing.assert_array_equal(result.argmax(0).numpy(), truth({0: "L3"}, {}))
    expected = torch.full(SHAPE, NEVER)
    expected[x.start - 1 : x.stop + 1, y.start - 1 : y.stop + 1, z.start - 1 : z.stop + 1] = float(np.log(0.4))
    expected[x, y, z] = 0
    torch.testing.assert_close(result[CHANNEL["L3"]], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("degrees", [0, 9])
def test_boxes_give_the_masks_of_whole_volumes(degrees):
    logits = column(LUMBAR, DISCS)
    for place, level in enumerate(LUMBAR):  # wide rims in which the body is behind by a little, up to the face of the grid
        x, y, z = body_box(place)
        paint(logits, (slice(0, x.stop), slice(y.start - 4, y.stop + 4), slice(z.start - 1, z.stop + 1)), background=0.52, **{level: 0.48})
        paint(logits, (x, y, z), **{level: 1})
    found = name_levels(SpineLogits.of(logits), np.diag([*SPACING, 1]), MIN_MM3)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    target = np.array([[0.7, 0, 0, -3], [0, 0.8 * c, -0.9 * s, 4], [0, 0.8 * s, 0.9 * c, -5], [0, 0, 0, 1]])
    masks = [restore_label_map(x, found.affine, target, (56, 100, 220)) for x in (found.logits, ClassLogits.of(dense(found)))]
    assert set(np.unique(masks[0])) == {0, *(CHANNEL[name] for name in [*LUMBAR, *DISCS])}
    assert torch.equal(*masks)


def test_input_is_not_changed():
    logits = column(LUMBAR, DISCS)
    copy = logits.clone()
    name(logits)
    assert torch.equal(logits, copy)
