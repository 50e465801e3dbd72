"""A report warns of what is doubtful."""

from __future__ import annotations

import re

import numpy as np
import pytest

from scripts.labels import label_table, structure
from scripts.levels.renaming import lumbar_number, rename_levels
from scripts.measure.doubts import doubts, picture_note


def report(*rows: dict, uncertain: bool = False) -> dict:
    return {"structures": list(rows), "uncertain": uncertain, "sequence_probability": 0.71}


def row(name: str, cut: tuple[str, ...] = (), **measures: float) -> dict:
    return {"name": name, "cut_by_view": list(cut), "measures": measures}


def test_uncertain_because_a_level_is_missing():
    rows = [row("L3"), row("L5"), row("S1")]
    lines = doubts({**report(*rows, uncertain=True), "sequence_probability": 0.999})
    assert lines[0] == "the levels are uncertain (a level is missing)"
    assert picture_note({**report(*rows, uncertain=True), "sequence_probability": 0.999}) == "levels uncertain (a level is missing)"


def test_no_levels_are_uncertain_in_an_empty_mask():
    empty = {"sequence_probability": 0.0, "uncertain": True, "structures": [], "warnings": ["the mask is empty"]}
    assert picture_note(empty) == "1 warning"


def test_slivers_at_the_ends_do_not_hide_a_cut_side():
    rows = [row("L2", ("superior",)), row("L3", ("left", "superior")), *(row(name, ("left",)) for name in ("L4", "L5"))]
    assert "every body is cut by the left side of the view: volumes and Cobb angles are those of parts" in doubts(report(*rows))
    assert doubts(report(*rows[:2], row("L4", ("left",)), row("L5"))) == []


def test_nothing_to_doubt():
    disc = row("L5/S1", anterior_height_mm=12.0, angle_deg=9.5)
    assert doubts(report(row("L5"), row("S1"), disc)) == []
    assert doubts(report(row("L4"), row("L5"))) == []
    assert doubts(report(row("L5"), row("S1"), row("L5/S1"))) == []  # could not be measured: its cells are empty
    assert doubts(report(row("L4"), row("L5"), row("S1"))) == []  # labels without discs
    ill = {"height_loss": 0.39, "wedge_deg": -29.9, "slip_percent": -24.9}
    assert doubts({**report(row("L4", **ill), row("L5", depth_mm=33.0)), "spine": {"cobb_deg": 19.9, "cobb_levels": "L4-L5"}}) == []


def test_a_flat_spine():
    rows = [row("L5", depth_mm=33.0), row("S1", depth_mm=30.0), row("L5/S1")]
    assert doubts({**report(*rows), "spine": {"lordosis_deg": 15.0}}) == []
    assert doubts({**report(*rows), "spine": {"cobb_deg": 3.0}}) == []
    why = "is the scan upside down or back to front, or a level wrong?"
    found = doubts({**report(*rows), "spine": {"lordosis_deg": 8.9, "lordosis_l1_l5_deg": 4.0}})
    assert found == [f"a lordosis of 8.9 degrees is unusual: {why}"]
    found = doubts({**report(*rows), "spine": {"lordosis_deg": 32.2, "lordosis_l1_l5_deg": 41.5}})
    assert found == ["the lordosis L1-S1 (32.2 degrees) is smaller than L1-L5 (41.5 degrees): the end-plate of L5 or S1 is doubtful"]
    found = doubts({**report(*rows[:1]), "spine": {"lordosis_l1_l5_deg": -31.4}})
    assert found == [f"a lordosis of -31.4 degrees is unusual: {why}"]


def test_a_level_that_is_missing():
    assert doubts(report(*map(row, ("T12", "L1", "L2", "L3", "L4", "S1")))) == []  # a spine of four
    assert doubts(report(*map(row, ("L4", "L5", "L6", "S1")))) == []
    why = "was found between the others: a vertebra is missed, or a level wrong"
    assert doubts(report(*map(row, ("L1", "L2", "L4", "L5", "S1")))) == [f"no L3 {why}"]
    assert doubts(report(*map(row, ("T12", "L3", "L5")))) == [f"no L1-L2, L4 {why}"]
    assert doubts(report(*map(row, ("L3", "L4", "L6", "S1")))) == [f"no L5 {why}"]
    assert doubts(report(*map(row, ("L3", "L4", "L4/L5", "L5/S1", "S1")))) == [f"no L5 {why}"]


def test_shapes_that_are_rather_wrong_outlines():
    rows = [row("T12", height_loss=0.54, wedge_deg=-40.4), row("L1", height_loss=0.1, wedge_deg=30.0, slip_percent=25.0)]
    (line,) = doubts({**report(*rows), "spine": {"cobb_deg": 20.0, "cobb_levels": "L2-L3"}})
    assert line == (
        "unusual: T12 (height_loss 0.54, wedge_deg -40.4), L1 (wedge_deg 30.0, slip_percent 25.0), the Cobb angle (20.0 degrees, L2-L3). "
        "A disease, or an outline that has failed? Look at the picture"
    )


def test_a_body_that_is_far_too_small():
    """Than any, than those beside it, or too flat; what the view cuts may be small, and so may the sacrum."""

    def sized(name: str, volume_mm3: float, cut: tuple[str, ...] = (), **measures: float) -> dict:
        return {**row(name, cut, **measures), "volume_mm3": volume_mm3}

    usual = [sized("T12", 17_000.0), sized("L1", 20_000.0), sized("L2", 30_000.0, middle_height_mm=15.0)]
    assert doubts(report(sized("T11", 900.0, ("superior",)), *usual)) == []
    assert doubts(report(sized("L5", 20_000.0), sized("S1", 500.0), row("L5/S1"))) == []
    why = "A disease, or an outline that has failed? Look at the picture"
    small = [sized("T11", 9_999.0), sized("T12", 16_000.0), sized("L1", 14_000.0), sized("L2", 30_000.0, middle_height_mm=14.9)]
    assert doubts(report(*small)) == [f"unusual: T11 (volume_mm3 9999), L1 (volume_mm3 14000), L2 (middle_height_mm 14.9). {why}"]
    fused = [sized("L2", 60_000.0, middle_height_mm=40.1), sized("L4", 40_000.0, middle_height_mm=40.0)]
    assert doubts(report(*fused))[1:] == [f"unusual: L2 (middle_height_mm 40.1). {why}"]
    flat = sized("L2", 9_000.0, height_loss=0.5, wedge_deg=3.0, middle_height_mm=9.1)
    assert doubts(report(flat)) == [f"unusual: L2 (height_loss 0.5, volume_mm3 9000, middle_height_mm 9.1). {why}"]


def test_a_body_that_could_not_be_measured():
    """A body without measures is named if others were measured; one that an end of the view cuts has none, of course."""
    rows = [row("L1"), row("L2", ("superior", "left")), row("L3", ("left",)), row("L4", depth_mm=33.0), row("L4/L5")]
    assert doubts(report(*rows)) == []
    assert doubts({**report(*rows), "spine": {}}) == ["L1, L3 could not be measured: no solid piece, far too small, or hardly in view"]


def test_a_disc_that_is_measured_but_not_drawn():
    """It is missing all the same."""
    undrawn = {**row("L5/S1", anterior_height_mm=12.0, angle_deg=9.5), "volume_mm3": None}
    missing = ["no disc between L5 and S1 was found: S1 and the lordosis down to it are doubtful"]
    assert doubts(report(row("L4/L5"), row("L5"), row("S1"), undrawn)) == missing
    assert doubts(report(row("L5"), row("S1"), undrawn)) == []  # labels without discs


def test_names_that_somebody_has_given():
    renamed = {"renamed": {"lowest": "L5", "lumbar": 0}}
    assert doubts({**report(row("L5")), **renamed}) == ["the levels were named by hand: L5 is the lowest body"]
    renamed["renamed"]["lumbar"] = 6
    assert doubts({**report(row("L5")), **renamed}) == ["the levels were named by hand: L5 is the lowest body, of 6 lumbar vertebrae"]


def test_a_note_for_the_picture():
    assert picture_note({}) == ""
    assert picture_note({"sequence_probability": 0.999, "uncertain": False, "warnings": []}) == ""
    assert picture_note({"sequence_probability": 0.959, "uncertain": True, "warnings": ["a"]}) == "levels uncertain (0.95), 1 warning"
    assert picture_note({"renamed": {}, "warnings": ["a", "b"]}) == "levels named by hand, 2 warnings"
    told = doubts(report(row("L4"), uncertain=True))  # what the note says already
    assert picture_note({"sequence_probability": 0.71, "uncertain": True, "warnings": told}) == "levels uncertain (0.71)"


def test_empty_and_uncertain():
    assert doubts(report()) == ["no vertebra and no disc was found: the mask is empty"]
    assert doubts(report(row("L4"), uncertain=True)) == ["the levels are uncertain (no S1 in the mask)"]
    sacrum = (row("L5"), row("L5/S1"), row("S1"))
    assert doubts(report(*sacrum, uncertain=True)) == ["the levels are uncertain (probability 0.71)"]
    found = doubts({**report(*sacrum, uncertain=True), "runner_up": ["L4", "L5", "S1"]})
    assert found == ["the levels are uncertain (probability 0.71): perhaps L4-S1?"]  # with a body more: no renaming gives that
    assert picture_note({**report(row("L4"), uncertain=True), "warnings": []}) == "levels uncertain (no S1 in the mask)"


@pytest.mark.parametrize(
    ("names", "others"),
    [
        ("T12 L1 L2 L3 L4 L5", "L1 L2 L3 L4 L5 L6"),
        ("L1 L2 L3 L4 L5 L6", "L1 L2 L3 L4 L5 S1"),
        ("L1 L2 L3 L4 L5 S1", "T12 L1 L2 L3 L4 S1"),
        ("L1 L2 L3 L4 L5 S1", "L2 L3 L4 L5 L6 S1"),
        ("T10 T11 T12 L1", "T11 T12 L1 L2"),
        ("L5", "L4"),
    ],
)
def test_the_command_of_the_hint_gives_the_likely_names(names, others):
    names, others = names.split(), others.split()
    (line,) = [line for line in doubts({**report(*map(row, names), uncertain=True), "runner_up": others}) if "rename" in line]
    lowest, lumbar = re.search(r"\? If so, rename --lowest (\w+) --lumbar (\d)$", line).groups()
    label = np.zeros((5, 5, 10 * len(names)), np.uint8)
    for place, name in enumerate(reversed(names)):
        label[1:4, 1:4, 10 * place + 1 : 10 * place + 9] = structure(name).channel
    renamed, _ = rename_levels(label, np.diag([3.0, 3.0, 3.5, 1.0]), lowest, int(lumbar))
    assert [label_table()[c].name for c in np.unique(renamed)[1:]] == others
    back, _ = rename_levels(renamed, np.diag([3.0, 3.0, 3.5, 1.0]), names[-1], lumbar_number(names))
    np.testing.assert_array_equal(back, label)


def test_a_narrow_view():
    bodies = [row(name, cut=("left",)) for name in ("L4", "L5")]
    found = ["every body is cut by the left side of the view: volumes and Cobb angles are those of parts"]
    assert doubts(report(*bodies, row("L4/L5"))) == found
    assert doubts(report(*bodies, row("L3"))) == []


def test_a_sacrum_without_its_disc():
    missing = ["no disc between L5 and S1 was found: S1 and the lordosis down to it are doubtful"]
    above = (row("L4/L5"), row("L5"))
    assert doubts(report(*above, row("S1"))) == missing
    assert doubts(report(*above, row("S1", cut=("inferior",)))) == []
    assert doubts(report(*above, row("S1", cut=("left", "right")))) == missing  # of a narrow stack
    assert len(doubts(report(*above, row("S1"), uncertain=True))) == 2


def test_six_lumbar_vertebrae():
    bodies = [row("L5"), row("L6"), row("S1")]
    flat, usual = {"anterior_height_mm": 0.2, "angle_deg": -15.0}, {"anterior_height_mm": 11.0, "angle_deg": 8.0}
    assert doubts(report(*bodies, row("L5/S1", **flat), row("L6/S1", **usual))) == []
    assert [line.split(" has")[0] for line in doubts(report(*bodies, row("L5/S1", **usual), row("L6/S1", **flat)))] == ["L6/S1"]


def test_an_unusual_disc_above_the_sacrum():
    flat, turned = row("L5/S1", anterior_height_mm=0.5, angle_deg=2.0), row("L5/S1", anterior_height_mm=6.0, angle_deg=-10.1)
    assert doubts(report(row("L5"), row("S1"), flat)) == [
        "L5/S1 has an unusual shape (0.5 mm high in front, 2.0 degrees): S1 and the lordosis down to it are doubtful"
    ]
    assert len(doubts(report(row("L5"), row("S1"), turned))) == 1
    assert len(doubts(report(row("L5"), row("S1", cut=("inferior",)), flat))) == 1  # its end-plate is in view
