"""Differences between the measures of two masks."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.labels import structure
from scripts.measure.agreement import measure_errors, summarise_errors

AFFINE = np.diag([2.0, 1.0, 1.0, 1.0])


def boxes(**heights: tuple[int, int]) -> np.ndarray:
    """Bodies of 40 x 36 mm between the given voxels of the last axis, channel indices on 1 mm (2 mm from left to right)."""
    label = np.zeros((30, 56, 130), np.uint8)
    for name, (lower, upper) in heights.items():
        label[5:25, 10:46, lower:upper] = structure(name).channel
    return label


def test_differences_of_two_masks():
    reference, predicted = boxes(L3=(10, 36), L2=(46, 72), L1=(82, 108)), boxes(L3=(10, 36), L2=(47, 71))
    rows = measure_errors(reference, predicted, AFFINE)
    assert {row["structure"] for row in rows} == {"L2", "L3", "L2/L3", "spine"}  # what both have
    found = {(row["structure"], row["measure"]): (row["reference"], row["predicted"]) for row in rows}
    for height in ("anterior_height_mm", "middle_height_mm", "posterior_height_mm"):
        assert found["L2", height] == pytest.approx((26, 24), abs=0.2)
        assert found["L3", height] == pytest.approx((26, 26), abs=0.2)
        assert found["L2/L3", height] == pytest.approx((10, 11), abs=0.2)
    assert {row["group"] for row in rows if row["structure"] == "L2/L3"} == {"disc"}
    assert not any(row["measure"] == "height_loss_grade" for row in rows)


def test_the_same_mask_has_no_errors():
    label = boxes(L5=(10, 36), L4=(46, 72), L3=(82, 108))
    summary = summarise_errors(measure_errors(label, label, AFFINE))
    assert {row["group"] for row in summary} >= {"body", "disc"}
    assert all(row["bias"] == row["mean_error"] == row["max_error"] == 0 for row in summary)


def test_bodies_that_the_view_cuts_are_left_out():
    label = boxes(L3=(10, 36), L2=(46, 72), L1=(82, 108))
    rows = measure_errors(label, label, AFFINE, {"L1": ["superior"]})
    assert "L1" not in {row["structure"] for row in rows}


def test_summary_by_hand():
    rows = [
        {"structure": "L1", "group": "body", "measure": "wedge_deg", "reference": 2.0, "predicted": 5.0},
        {"structure": "L2", "group": "body", "measure": "wedge_deg", "reference": 2.0, "predicted": 1.0},
        {"structure": "spine", "group": "spine", "measure": "cobb_deg", "reference": 4.0, "predicted": 4.5},
        {"structure": "L1/L2", "group": "disc", "measure": "angle_deg", "reference": -1.0, "predicted": -1.0},
    ]
    assert summarise_errors(rows) == [
        {"group": "body", "measure": "wedge_deg", "n": 2, "bias": 1.0, "mean_error": 2.0, "max_error": 3.0},
        {"group": "disc", "measure": "angle_deg", "n": 1, "bias": 0.0, "mean_error": 0.0, "max_error": 0.0},
        {"group": "spine", "measure": "cobb_deg", "n": 1, "bias": 0.5, "mean_error": 0.5, "max_error": 0.5},
    ]
    assert summarise_errors([]) == []
