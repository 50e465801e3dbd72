"""Dice, distances in mm and levels against hand-computed boxes, and against a scorer outside the bundle."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.labels import channels_from_verse, label_table, structure
from scripts.metrics import StructureDice, scans_digest, score_structures, summarise, surface_distances_mm, worst_cases

SCORER = Path(__file__).resolve().parents[2] / "shared" / "tools" / "score.py"
L1, L2, L3, DISC, DISC_2 = (structure(name).channel for name in ("L1", "L2", "L3", "L1/L2", "L2/L3"))


def boxes(*rows: tuple[int, slice], shape: tuple[int, int, int] = (4, 4, 30)) -> np.ndarray:
    """Return a map with full-width slabs (channel, z)."""
    label = np.zeros(shape, np.uint8)
    for channel, z in rows:
        label[..., z] = channel
    return label


def one(rows: list[dict]) -> dict:
    assert len(rows) == 1
    return rows[0]


# StructureDice


def test_structure_dice_by_hand():
    truth = torch.tensor([L1, L1, L1, L2, 0, 0, 0, 0]).view(1, 1, 2, 2, 2)
    predicted = torch.tensor([L1, L1, L3, 0, L1, 0, L3, 0]).view(1, 1, 2, 2, 2)
    metric = StructureDice()
    scores = metric(predicted, truth)
    assert scores.shape == (1, len(label_table()))
    assert scores[0, L1].item() == pytest.approx(2 * 2 / (3 + 3))
    assert scores[0, L2].item() == 0
    others = [i for i in range(len(label_table())) if i not in (L1, L2)]
    assert torch.isnan(scores[0, others]).all()  # L3 too: predicted, but not in the reference
    assert metric.aggregate().item() == pytest.approx((2 / 3 + 0) / 2)


def test_structure_dice_takes_lists_and_batches():
    generator = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(0, len(label_table()), (3, 1, 4, 5, 6), generator=generator) for _ in range(2))
    batch, items = StructureDice(), StructureDice()
    scores = batch(predicted, truth)
    listed = items([p.to(torch.uint8) for p in predicted], [t.to(torch.uint8) for t in truth])
    torch.testing.assert_close(scores, listed, equal_nan=True)
    assert batch.aggregate().item() == pytest.approx(items.aggregate().item())
    for scan in range(3):
        for c in (1, 10, 23):
            a, b = (truth[scan] == c).numpy(), (predicted[scan] == c).numpy()
            assert scores[scan, c].item() == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_structure_dice_aggregates_over_structures_not_scans():
    metric = StructureDice()
    metric(torch.tensor([L1, L2, L3]).view(1, 1, 3, 1, 1), torch.tensor([L1, L2, L3]).view(1, 1, 3, 1, 1))  # 1, 1, 1
    metric([torch.tensor([0, 0]).view(1, 2, 1, 1)], [torch.tensor([L1, 0]).view(1, 2, 1, 1)])  # 0
    assert metric.aggregate().item() == pytest.approx(3 / 4)
    metric.reset()
    metric(torch.zeros(1, 1, 2, 1, 1), torch.tensor([L1, 0]).view(1, 1, 2, 1, 1))
    assert metric.aggregate().item() == 0


def test_structure_dice_of_an_empty_reference():
    metric = StructureDice()
    assert torch.isnan(metric(torch.full((1, 1, 2, 2, 2), L1), torch.zeros(1, 1, 2, 2, 2))).all()
    metric(torch.full((1, 1, 2, 2, 2), L1), torch.full((1, 1, 2, 2, 2), L1))
    assert metric.aggregate().item() == 1  # the empty scan costs nothing


def test_structure_dice_counts_a_scan_once():
    """Two processes may have the same scan: equal files count once, equal values do not."""
    metric = StructureDice()
    one_structure = torch.full((1, 1, 2, 1), L1)
    for name, predicted in (("a_seg.nii.gz", L1), ("a_seg.nii.gz", L1), ("b_seg.nii.gz", L2)):
        truth = MetaTensor(one_structure, meta={"filename_or_obj": name})
        metric([torch.full((1, 1, 2, 1), predicted)], [truth])
    assert metric.aggregate().item() == pytest.approx(1 / 2)


def test_structure_dice_counts_scans_that_share_a_label():
    metric = StructureDice()
    for scan, predicted in (("a_T1w.nii.gz", L1), ("a_T2w.nii.gz", L2)):
        found = MetaTensor(torch.full((1, 1, 2, 1), predicted), meta={"filename_or_obj": scan})
        metric([found], [MetaTensor(torch.full((1, 1, 2, 1), L1), meta={"filename_or_obj": "a_seg.nii.gz"})])
    assert metric.aggregate().item() == pytest.approx(1 / 2)


def test_structure_dice_of_a_batch_whose_files_nobody_can_tell():
    truth = MetaTensor(torch.full((2, 1, 2, 2, 1), L1), meta={"filename_or_obj": ["a_seg.nii.gz", "b_seg.nii.gz"]})
    with pytest.raises(ValueError, match="one scan at a time, got a batch of 2"):
        StructureDice()(torch.full((2, 1, 2, 2, 1), L1), truth)


# surface_distances_mm and score_structures


@pytest.mark.parametrize("z_mm", [1.0, 2.0, 0.5])
def test_distance_of_two_points(z_mm):
    a, b = np.zeros((2, 5, 5, 9), bool)
    a[2, 2, 1], b[2, 2, 7] = True, True
    assert surface_distances_mm(a, b, (1, 1, z_mm)) == (6 * z_mm, 6 * z_mm)


def test_distances_at_the_rim_and_of_several_points():
    a, b = np.zeros((2, 1, 1, 10), bool)
    a[..., 0], b[..., 0], b[..., 9] = True, True, True
    mean, hd95 = surface_distances_mm(a, b, (1, 1, 1))
    assert mean == pytest.approx(9 / 3)  # 0 from a; 0 and 9 from b
    assert hd95 == pytest.approx(0.95 * 9)  # the larger of 0 and the 95th percentile of (0, 9)


def test_shifted_slab():
    # 4 x 4 x 8 voxels of 1 mm, moved by 2 along z
    reference, predicted = boxes((L1, slice(10, 18))), boxes((L1, slice(12, 20)))
    row = one(score_structures(reference, predicted, (1, 1, 1)))
    assert (row["structure"], row["group"], row["identified"]) == ("L1", "body", 1.0)
    assert row["dice"] == row["level_dice"] == pytest.approx(2 * 6 / 16)
    # by symmetry one direction: two end faces of 16 voxels and 6 rings of 12, of which the reference's z = 10 lies 2 from the other's
    # end face, and z = 11 its 12 of the ring 1; inner voxels: at z = 12 the ring meets the face, z = 13..16 ring on ring;
    # z = 17 the face's 12 outer voxels meet the ring, its 4 inner ones lie 1 from the ring
    distances = [2] * 16 + [1] * 12 + [0] * 12 * 5 + [0] * 12 + [1] * 4
    assert row["asd_mm"] == pytest.approx(np.mean(distances))
    assert row["hd95_mm"] == pytest.approx(np.percentile(distances, 95)) == 2


def test_distances_are_in_mm():
    reference, predicted = boxes((L1, slice(10, 18))), boxes((L1, slice(12, 20)))
    row = one(score_structures(reference, predicted, (1, 1, 1)))
    double = one(score_structures(reference, predicted, (2, 2, 2)))
    assert double["asd_mm"] == pytest.approx(2 * row["asd_mm"])
    assert double["hd95_mm"] == pytest.approx(2 * row["hd95_mm"])
    assert double["dice"] == row["dice"]
    assert one(score_structures(reference, predicted, (1, 1, 3)))["hd95_mm"] == 6  # 2 slices of 3 mm


def test_perfect_prediction():
    label = boxes((L1, slice(0, 8)), (DISC, slice(8, 10)), (L2, slice(10, 18)))
    rows = score_structures(label, label, (0.7, 2, 1.3))
    assert [r["structure"] for r in rows] == ["L1", "L2", "L1/L2"]
    assert [r["group"] for r in rows] == ["body", "body", "disc"]
    for row in rows:
        assert [row[k] for k in ("dice", "level_dice", "asd_mm", "hd95_mm", "identified")] == [1, 1, 0, 0, 1]


def test_wrong_level_keeps_dice_and_distances():
    reference, predicted = boxes((L1, slice(10, 18))), boxes((L2, slice(12, 20)))
    right = one(score_structures(reference, boxes((L1, slice(12, 20))), (1, 1, 1)))
    row = one(score_structures(reference, predicted, (1, 1, 1)))
    assert row == {**right, "identified": 0.0, "level_dice": 0.0}


def test_instance_that_covers_most_counts():
    reference = boxes((L2, slice(10, 20)))
    predicted = boxes((L1, slice(10, 16)), (L2, slice(16, 26)))  # 6 slices as L1, 4 as L2
    row = one(score_structures(reference, predicted, (1, 1, 1)))
    assert row["identified"] == 0
    assert row["dice"] == pytest.approx(2 * 6 / (10 + 6))
    assert row["level_dice"] == pytest.approx(2 * 4 / (10 + 10))


def test_missing_structure():
    row = one(score_structures(boxes((L1, slice(10, 18))), boxes((L1, slice(20, 28))), (1, 1, 1)))  # the right level elsewhere
    assert (row["dice"], row["level_dice"], row["asd_mm"], row["hd95_mm"], row["identified"]) == (0, 0, np.inf, np.inf, 0)
    row = one(score_structures(boxes((L1, slice(10, 18))), boxes(), (1, 1, 1)))
    assert (row["dice"], row["asd_mm"], row["identified"]) == (0, np.inf, 0)


def test_a_disc_on_a_body_is_no_hit():
    row = one(score_structures(boxes((L1, slice(10, 18))), boxes((DISC, slice(10, 18))), (1, 1, 1)))
    assert (row["dice"], row["asd_mm"], row["identified"]) == (0, np.inf, 0)


def test_partial_reference_ignores_other_predictions():
    reference = boxes((L2, slice(10, 18)))
    predicted = boxes((L1, slice(0, 8)), (DISC, slice(8, 10)), (L2, slice(10, 18)), (DISC_2, slice(18, 20)), (L3, slice(20, 28)))
    row = one(score_structures(reference, predicted, (1, 1, 1)))
    assert (row["structure"], row["dice"], row["asd_mm"], row["identified"]) == ("L2", 1, 0, 1)


def test_empty_reference_has_no_rows():
    assert score_structures(boxes(), boxes((L1, slice(0, 8))), (1, 1, 1)) == []


def test_inputs_are_not_changed():
    reference, predicted = boxes((L1, slice(10, 18))), boxes((L1, slice(12, 20)))
    for label in (reference, predicted):
        label.setflags(write=False)
    score_structures(reference, predicted, np.array([1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(reference, boxes((L1, slice(10, 18))))


def test_agrees_with_the_external_scorer():
    if not SCORER.is_file():
        pytest.skip(f"{SCORER} is not there")
    spec = importlib.util.spec_from_file_location("score", SCORER)
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    random = np.random.default_rng(0)
    verse = np.array([s.verse for s in label_table()])
    names = ("T12", "T12/L1", "L1", "L1/L2", "L2", "L2/L3", "L3", "L3/L4", "L4", "L4/L5", "L5", "L5/S1")
    reference, predicted = np.zeros((2, 9, 20, 70), np.uint8)
    for i, name in enumerate(names):
        channel, low, high = structure(name).channel, 5 * i + 2, 5 * i + 7
        reference[2:7, 4:16, low:high] = channel
        shift = random.integers(-2, 3, 2)
        predicted[2 + shift[0] // 2 : 7 + shift[0] // 2, 4 + shift[1] : 16 + shift[1], low : high + int(shift[0])] = channel
    predicted[predicted == structure("L3").channel] = structure("L4").channel  # a wrong level
    predicted[predicted == structure("L1/L2").channel] = 0  # a missing disc
    reference[reference == structure("T12").channel] = 0  # not labelled
    rough = random.random(predicted.shape) < 0.02
    predicted[rough] = random.integers(0, len(label_table()), rough.sum())
    spacing = np.array([3.3, 0.9, 1.2])
    expected = scorer.score_case(verse[reference], verse[predicted], spacing)
    rows = score_structures(reference, predicted, spacing)
    assert channels_from_verse([r["label"] for r in expected]) == [structure(r["structure"]).channel for r in rows]
    assert len(rows) == 11
    for ours, theirs in zip(rows, expected):
        assert ours["group"] == theirs["group"]
        assert ours["identified"] == theirs["id"]
        for key, name in (("dice", "dice"), ("level_dice", "label_dice"), ("asd_mm", "asd"), ("hd95_mm", "hd95")):
            assert np.nan_to_num(ours[key], posinf=-1) == pytest.approx(np.nan_to_num(theirs[name], nan=-1), abs=1e-9), (ours, name)
    assert 0 < np.mean([r["identified"] for r in rows]) < 1


# summarise


def row(case: str, source: str, name: str, dice: float, asd: float, identified: float) -> dict:
    return {
        "case": case,
        "source": source,
        "structure": name,
        "group": structure(name).kind,
        "dice": dice,
        "level_dice": dice * identified,
        "asd_mm": asd,
        "hd95_mm": 2 * asd,
        "identified": identified,
    }


ROWS = [
    row("a", "spider", "L1/L2", 0.6, 1.0, 1.0),
    row("a", "spider", "L2", 0.8, 2.0, 1.0),
    row("a", "spider", "L1", 0.9, 3.0, 0.0),
    row("b", "phantom", "L2", 0.0, np.inf, 0.0),
    row("b", "phantom", "L1", 0.7, 5.0, 1.0),
    row("c", "phantom", "L1", 0.5, 1.0, 1.0),
]


def test_summary_by_structure():
    summary = summarise(ROWS, ["structure"])
    assert [s["structure"] for s in summary] == ["L1", "L2", "L1/L2", "all"]  # the table's order
    assert summary[0] == pytest.approx(
        {
            "structure": "L1",
            "scans": 3,
            "n": 3,
            "dice": 0.7,
            "dice_sd": np.sqrt((0.04 + 0 + 0.04) / 3),
            "level_dice": 0.4,
            "asd_mm": 3.0,
            "hd95_mm": 6.0,
            "missed": 0,
            "identified": 2 / 3,
            "all_levels": 2 / 3,
        }
    )
    assert list(summary[0]) == [
        "structure", "scans", "n", "dice", "dice_sd", "level_dice", "asd_mm", "hd95_mm", "missed", "identified", "all_levels",
    ]  # fmt: skip
    l2 = summary[1]
    assert (l2["n"], l2["missed"], l2["asd_mm"], l2["hd95_mm"]) == (2, 1, 2.0, 4.0)  # the missed structure has no distance
    assert (l2["dice"], l2["dice_sd"], l2["identified"], l2["all_levels"]) == pytest.approx((0.4, 0.4, 0.5, 0.5))
    everything = summary[-1]
    assert (everything["scans"], everything["n"], everything["missed"]) == (3, 6, 1)
    assert everything["dice"] == pytest.approx(3.5 / 6)
    assert everything["asd_mm"] == pytest.approx(12 / 5)
    assert everything["all_levels"] == pytest.approx(1 / 3)  # only scan c has every level right


def test_summary_by_source_and_group():
    summary = summarise(ROWS, ["source", "group"])
    assert [(s["source"], s["group"]) for s in summary] == [("phantom", "body"), ("spider", "body"), ("spider", "disc"), ("all", "all")]
    assert [s["all_levels"] for s in summary] == pytest.approx([0.5, 0, 1, 1 / 3])
    assert [s["scans"] for s in summary] == [2, 1, 1, 3]


def test_summary_of_nothing_found():
    summary = summarise([row("b", "", "L2", 0.0, np.inf, 0.0)], ["structure"])
    assert (summary[0]["asd_mm"], summary[0]["hd95_mm"], summary[0]["missed"]) == (None, None, 1)


def test_equal_stems_of_two_sources_are_two_scans():
    summary = summarise([row("1_t2", "spider", "L1", 1.0, 0.0, 1.0), row("1_t2", "other", "L1", 1.0, 0.0, 0.0)], ["structure"])
    assert summary[-1]["scans"] == 2
    assert summary[-1]["all_levels"] == 0.5


def test_equal_stems_in_two_folders_are_two_scans():
    rows = [
        {**row("T2", "mine", "L1", 1.0, 0.0, identified), "image": f"{folder}/T2.nii"} for folder, identified in (("a", 1.0), ("b", 0.0))
    ]
    assert summarise(rows, ["structure"])[-1]["scans"] == 2
    assert summarise(rows, ["structure"])[-1]["all_levels"] == 0.5
    assert [w["n"] for w in worst_cases(rows)] == [1, 1]


def test_worst_cases():
    rows = [
        row(case, "x", name, dice, 1.0, 1.0)
        for case, name, dice in [("a", "L1", 1.0), ("a", "L2", 0.5), ("b", "L1", 0.9), ("c", "L1", 0.2)]
    ]
    rows[2]["level_dice"] = 0.0  # scan b has a body under another name
    worst = worst_cases(rows, count=2)
    assert [w["case"] for w in worst] == ["b", "c"]
    assert worst[0] == {
        "case": "b", "source": "x", "n": 1, "dice": 0.9, "level_dice": 0.0, "identified": 1.0, "worst_structure": "L1",
        "worst_level_dice": 0.0,
    }  # fmt: skip
    assert worst_cases(rows)[2]["worst_structure"] == "L2"


# scans_digest


def test_the_digest_of_scans_does_not_depend_on_their_order_or_place():
    digest = scans_digest(["/d/p1/T2.nii.gz", "/d/p2/T2.nii.gz"])
    assert digest == hashlib.sha256(b"p1/T2.nii.gz\np2/T2.nii.gz").hexdigest()
    assert digest == scans_digest(["/e/f/p2/T2.nii.gz", "/e/f/p1/T2.nii.gz", "/e/f/p2/T2.nii.gz"])
    assert digest != scans_digest(["/d/p1/T2.nii.gz", "/d/p3/T2.nii.gz"])
    assert scans_digest(["/d/a.nii"]) == scans_digest(["a.nii"]) == hashlib.sha256(b"a.nii").hexdigest()
