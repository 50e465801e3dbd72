"""Columns of the tables of masks."""

from __future__ import annotations

import numpy as np

from scripts.labels import encode, structure
from scripts.measure.rows import CENTRE, MEASURES, in_order, structure_rows
from scripts.measure.spine import measure_spine
from scripts.phantoms.phantom import draw_phantom

SIGNALS = ("signal_mean", "signal_sd", "signal_median")


def test_columns_do_not_depend_on_the_first_mask():
    short = {"mask": "a", "cobb_deg": 3.0, "cobb_levels": "L1-L4", "warnings": ""}
    long = {"mask": "b", "uncertain": False, "lordosis_deg": 40.0, "cobb_deg": 5.0, "cobb_levels": "L1-L3", "warnings": ""}
    columns = ["mask", "uncertain", "lordosis_deg", "cobb_deg", "cobb_levels", "warnings"]
    for rows in ([short, long], [long, short]):
        assert [list(row) for row in in_order(rows)] == [columns] * 2
    assert in_order([short, long])[0]["lordosis_deg"] is None
    assert in_order([short]) == [short]


def test_every_measure_has_its_place():
    phantom = draw_phantom(5, contrast="T2w")
    found = measure_spine(encode(phantom.label), phantom.affine)
    assert {*found.spine, *(key for row in found.structures.values() for key in row)} == {*MEASURES} - {"warnings", *CENTRE, *SIGNALS}


def test_centre_of_a_structure():
    label = np.zeros((4, 5, 6), np.uint8)
    label[1:3, 2, 1:5] = structure("L4").channel
    label[3, 4, 0] = structure("L5").channel
    affine = np.array([[0.0, 0.0, 4.0, -10.0], [-0.5, 0.0, 0.0, 20.0], [0.0, 1.5, 0.0, 30.0], [0.0, 0.0, 0.0, 1.0]])
    rows = structure_rows([{"name": "L4"}, {"name": "L5"}, {"name": "S1"}], label, affine, "verse")
    assert [[row[key] for key in CENTRE] for row in rows] == [[0.0, 19.2, 33.0], [-10.0, 18.5, 36.0]]
