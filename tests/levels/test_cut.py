"""Structures that the view cuts are found."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.common.arrays import whole
from scripts.labels import structure
from scripts.levels.cut import cut_faces, view_box


def test_cut_faces():
    label = np.zeros((6, 8, 10), np.uint8)
    label[0:2, 2:4, 0:3] = structure("S1").channel
    label[2:4, 0:8, 5:7] = structure("L5").channel
    label[4:6, 3:5, 8:10] = structure("L4").channel
    label[2:4, 3:5, 4] = structure("L5/S1").channel
    large = (4.0, 4.0, 4.0)
    assert cut_faces(whole((6, 8, 10)), (0, 0, 0), label, large) == {
        "S1": ["left", "inferior"],
        "L5": ["posterior", "anterior"],
        "L4": ["right", "superior"],
    }
    assert cut_faces(whole((8, 10, 14)), (1, 1, 2), label, large) == {}
    assert cut_faces(whole((8, 10, 14)), (2, 1, 1), label, large) == {"S1": ["inferior"], "L4": ["right"]}  # the last slice but one
    assert cut_faces(whole((6, 8, 10)), (0, 0, 0), np.zeros((6, 8, 10), np.uint8), large) == {}


@pytest.mark.parametrize(("spacing", "gap", "cut"), [(0.5, 4, True), (0.5, 5, False), (1.0, 2, True), (1.0, 3, False), (3.0, 1, True)])
def test_a_rounded_outline_touches_the_end_of_the_view(spacing, gap, cut):
    label = np.zeros((4, 4, 20), np.uint8)
    label[1:3, 1:3, 10 : 20 - gap] = structure("T10").channel
    assert cut_faces(whole(label.shape), (0, 0, 0), label, (4.0, 4.0, spacing)) == ({"T10": ["superior"]} if cut else {})


def test_view_box():
    image = np.zeros((4, 20, 30))
    image[:, 3:, 4:25] = np.random.default_rng(0).random((4, 17, 21))
    assert view_box(image) == (slice(0, 4), slice(4, 20), slice(5, 24))
    assert view_box(np.ones((2, 3, 4))) == (slice(0, 2), slice(0, 3), slice(0, 4))


def test_a_blank_border_cuts():
    """L5 ends two voxels before the blank slices, and L4 three."""
    label = np.zeros((6, 8, 10), np.uint8)
    label[2:4, 2:4, 4:6] = structure("L5").channel
    label[2:4, 5:7, 5:7] = structure("L4").channel
    image = np.random.default_rng(0).random((6, 8, 10))
    image[:, :, :2] = 0
    view = view_box(image)
    assert view[2] == slice(3, 10)
    assert cut_faces(view, (0, 0, 0), label, (4.0, 4.0, 4.0)) == {"L5": ["inferior"]}
