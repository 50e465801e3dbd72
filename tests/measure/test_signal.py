"""Signals of structures, on boxes whose voxels are known."""

from __future__ import annotations

import numpy as np
import pytest
from monai.transforms.utils import create_rotate
from nibabel.affines import from_matvec

from scripts.labels import encode, structure
from scripts.measure.signal import measure_signals
from scripts.phantoms.phantom import draw_phantom

L1, L2, DISC = (structure(name).channel for name in ("L1", "L2", "L1/L2"))
UNIT = np.eye(4)


def test_the_rim_does_not_count():
    label = np.zeros((9, 9, 16), np.uint8)
    label[1:8, 1:8, 1:8], label[1:8, 1:8, 8:15] = L1, L2  # two bodies that touch: each is the other's rim
    scan = np.full(label.shape, 1000.0, np.float32)
    core = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    scan[3:6, 3:6, 3:6], scan[3:6, 3:6, 10:13] = core, 5
    assert measure_signals(label, scan, UNIT) == {
        "L1": {"signal_mean": 13.0, "signal_sd": 7.789, "signal_median": 13.0},  # sqrt((27^2 - 1) / 12)
        "L2": {"signal_mean": 5.0, "signal_sd": 0.0, "signal_median": 5.0},
    }


@pytest.mark.parametrize(("spacing", "core"), [((4.0, 0.8, 0.8), (7, 5, 5)), ((0.5, 1.0, 3.0), (1, 5, 7)), ((2.0, 2.0, 2.0), (7, 7, 7))])
def test_the_rim_is_in_mm_and_a_voxel_at_least(spacing, core):
    """2 mm are 4, 2 or 1 voxels; of 0.8 mm 2, nearer than 3."""
    label = np.zeros((13, 13, 13), np.uint8)
    label[2:11, 2:11, 2:11] = DISC
    low = [2 + (9 - n) // 2 for n in core]
    inner = tuple(slice(start, start + n) for start, n in zip(low, core))
    scan = np.full(label.shape, np.float32(-3))
    scan[inner] = 0.125
    upright = np.diag([*spacing, 1.0])
    oblique = from_matvec(create_rotate(3, [0.3, -0.2, 0.5])[:3, :3]) @ upright
    for affine in (upright, oblique):
        assert measure_signals(label, scan, affine) == {"L1/L2": {"signal_mean": 0.125, "signal_sd": 0.0, "signal_median": 0.125}}
    scan[tuple(low)] += 1  # a corner of it counts as any other voxel
    assert measure_signals(label, scan, oblique)["L1/L2"]["signal_mean"] == pytest.approx(0.125 + 1 / np.prod(core), rel=1e-3)


def test_the_end_of_the_volume_is_no_border_and_a_thin_structure_has_no_signal():
    label = np.zeros((6, 6, 8), np.uint8)
    label[:, :, :4], label[:, :, 5:] = L1, L2
    scan = np.where(np.arange(8) < 2, 7.0, 9.0) * np.ones(label.shape)
    assert measure_signals(label, scan, UNIT) == {
        "L1": {"signal_mean": 7.0, "signal_sd": 0.0, "signal_median": 7.0},
        "L2": {"signal_mean": 9.0, "signal_sd": 0.0, "signal_median": 9.0},
    }
    label[:, :, 4] = DISC
    assert set(measure_signals(label, scan, UNIT)) == {"L1", "L2"}
    assert measure_signals(np.zeros_like(label), scan, UNIT) == {}


def test_a_phantom_in_any_order_of_axes_and_in_other_units():
    phantom = draw_phantom(5, contrast="T2w")
    label = encode(phantom.label)
    found = measure_signals(label, phantom.image, phantom.affine)
    assert len(found) > 15
    step = np.array([[0, 0, -1, phantom.image.shape[0] - 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    turned = [volume[::-1].transpose(1, 2, 0) for volume in (label, phantom.image)]
    assert measure_signals(*turned, phantom.affine @ step) == found
    doubled = measure_signals(label, phantom.image * 2, phantom.affine)
    for name, row in found.items():
        assert {key: value / 2 for key, value in doubled[name].items()} == pytest.approx(row, rel=2e-3)
    bodies = [row["signal_median"] for name, row in found.items() if "/" not in name]
    discs = [row["signal_median"] for name, row in found.items() if "/" in name]
    assert np.median(discs) > np.median(bodies)  # T2: water in the discs, and the order of the tissues is that of the phantom


def test_voxels_without_a_value_do_not_count():
    label, scan = np.full((5, 5, 8), L1, np.uint8), np.full((5, 5, 8), 3.0, np.float32)
    label[:, :, 6:] = L2
    scan[1, 2, 1:3], scan[:, :, 6:] = np.nan, np.nan
    assert measure_signals(label, scan, UNIT) == {"L1": {"signal_mean": 3.0, "signal_sd": 0.0, "signal_median": 3.0}}
