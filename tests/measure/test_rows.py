"""Columns of the tables of masks."""

from __future__ import annotations

from scripts.labels import encode
from scripts.measure.rows import MEASURES, in_order
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
    assert {*found.spine, *(key for row in found.structures.values() for key in row)} == {*MEASURES} - {"warnings", *SIGNALS}
