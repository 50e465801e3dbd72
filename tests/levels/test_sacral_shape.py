"""The shape of a body tells the sacrum from lumbar bodies."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.labels import label_table
from scripts.levels.instances import find_instances
from scripts.levels.level_sequence import name_bodies
from scripts.levels.sacral_shape import MAX_NATS, NATS_PER_RAD, USUAL_KINK, sacral_evidence

SHAPE = (30, 140, 140)  # mm
HEIGHT, DEPTH, WIDTH = 24.0, 30.0, 26.0


def spine(*bodies: tuple[float, float, float, float], spacing=(1.0, 1.0, 1.0)) -> tuple:
    """Numbers, pieces and spacing of bodies: centre to the front and upwards, lean in rad, rise of the height per mm to the front."""
    grids = np.meshgrid(*((np.arange(round(n / s)) + 0.5) * s for n, s in zip(SHAPE, spacing)), indexing="ij")
    x, y, z = grids
    mask = np.zeros(x.shape, bool)
    for front, up, lean, rise in bodies:
        along = (y - front) * np.cos(lean) - (z - up) * np.sin(lean)
        height = (y - front) * np.sin(lean) + (z - up) * np.cos(lean)
        mask |= (abs(x - 15) < WIDTH / 2) & (abs(along) < DEPTH / 2) & (abs(height) < (HEIGHT + rise * along) / 2)
    return *find_instances(mask, spacing, 300.0), spacing


STRAIGHT = [(80.0, 120.0, 0.0, 0.0), (80.0, 90.0, 0.0, 0.0)]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (2.0, 0.5, 2.0)])
@pytest.mark.parametrize("rise", [0.2, 0.0, -0.5, -0.6, -1.2])
def test_a_wedge_below_straight_bodies(rise, spacing):
    """The kink is the angle between its end-plates, and that by which its centre lies behind those above."""
    numbers, bodies, spacing = spine(*STRAIGHT, (80.0, 55.0, 0.0, rise), spacing=spacing)
    evidence = sacral_evidence(numbers, bodies, spacing)
    behind = -rise * DEPTH**2 / 12 / HEIGHT
    kink = np.arctan(-rise) + np.arctan(behind / 35.0)
    assert evidence[:2].tolist() == [0.0, 0.0]
    assert evidence[2] == pytest.approx(np.clip(NATS_PER_RAD * (kink - USUAL_KINK), 0, MAX_NATS), abs=NATS_PER_RAD * 0.04)


def test_a_bend_backwards_counts_and_one_to_the_front_does_not():
    lean = 0.4
    behind, before = (
        sacral_evidence(*spine(*STRAIGHT, (80 - side * 30 * np.sin(lean), 90 - 30 * np.cos(lean), side * lean, 0.0)))[2]
        for side in (1, -1)
    )  # fmt: skip
    assert behind == pytest.approx(NATS_PER_RAD * (lean - USUAL_KINK), abs=0.4)
    assert before == 0.0


def test_the_whole_spine_may_lean():
    """The column is turned by half a radian to the front; only its shape counts."""
    turn = 0.5
    places = [(60 + 30 * k * np.sin(turn), 35 + 30 * k * np.cos(turn), turn, rise) for k, rise in ((2, 0.0), (1, 0.0), (0, -0.5))]
    assert sacral_evidence(*spine(*places))[2] == pytest.approx(NATS_PER_RAD * (0.464 - USUAL_KINK), abs=0.5)


def test_what_the_view_cuts_has_no_evidence():
    numbers, bodies, spacing = spine((80.0, 75.0, 0.0, 0.0), (80.0, 45.0, 0.0, 0.0), (80.0, 10.0, 0.0, -0.5))
    assert numbers[:, :, 0].any()
    assert sacral_evidence(numbers, bodies, spacing).tolist() == [0.0, 0.0, 0.0]


def test_nor_has_what_a_blank_border_cuts():
    numbers, bodies, spacing = spine(*STRAIGHT, (80.0, 55.0, 0.0, -0.6))
    lowest = int(np.flatnonzero((numbers == 3).any((0, 1)))[0])
    assert sacral_evidence(numbers, bodies, spacing, lowest - 1)[2] > 0
    assert sacral_evidence(numbers, bodies, spacing, lowest)[2] == 0


def test_a_sliver_has_none():
    numbers, bodies, spacing = spine(*STRAIGHT, (80.0, 60.0, 0.0, 0.0))
    thin = numbers.copy()
    thin[(thin == 3) & (np.arange(thin.shape[1]) != 80)[:, None]] = 0
    assert sacral_evidence(thin, bodies, spacing)[2] == 0.0


def test_names_follow_the_shape_where_votes_leave_it_open():
    """Three bodies that vote for L3, L4, L5 and for L4, L5, S1 alike; the lowest has the shape of a sacrum, or has not."""
    names = [s.name for s in label_table()]
    numbers, bodies, spacing = spine(*STRAIGHT, (80.0, 60.0, 0.0, -0.6))
    votes = np.full((3, len(names)), -20.0)
    for row, levels in zip(votes, (("L3", "L4"), ("L4", "L5"), ("L5", "S1"))):
        row[[names.index(level) for level in levels]] = np.log(0.5)
    evidence = sacral_evidence(numbers, bodies, spacing)
    assert [names[c] for c in name_bodies(bodies, votes, evidence).channels] == ["L4", "L5", "S1"]
    without = name_bodies(bodies, votes)
    assert {without.channels[2], without.runner_up[2]} == {names.index("L5"), names.index("S1")}
    assert without.probability < 0.51
    assert name_bodies(bodies, votes, evidence).probability == pytest.approx(1 / (1 + np.exp(-evidence[2])), abs=0.05)
