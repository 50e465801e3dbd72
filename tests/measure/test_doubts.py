"""What a report warns of."""

from __future__ import annotations

from scripts.measure.doubts import doubts


def report(*rows: dict, uncertain: bool = False) -> dict:
    return {"structures": list(rows), "uncertain": uncertain, "sequence_probability": 0.71}


def row(name: str, cut: tuple[str, ...] = (), **measures: float) -> dict:
    return {"name": name, "cut_by_view": list(cut), "measures": measures}


def test_nothing_to_doubt():
    disc = row("L5/S1", anterior_height_mm=12.0, angle_deg=9.5)
    assert doubts(report(row("L5"), row("S1"), disc)) == []
    assert doubts(report(row("L4"), row("L5"))) == []
    assert doubts(report(row("L5"), row("S1"), row("L5/S1"))) == []  # could not be measured: its cells are empty


def test_a_flat_spine():
    rows = [row("L5"), row("S1"), row("L5/S1")]
    assert doubts({**report(*rows), "spine": {"lordosis_deg": 15.0}}) == []
    assert doubts({**report(*rows), "spine": {"cobb_deg": 3.0}}) == []
    found = doubts({**report(*rows), "spine": {"lordosis_deg": 8.9}})
    assert found == ["a lordosis of 8.9 degrees is unusual: is the scan upside down, or S1 another vertebra?"]


def test_empty_and_uncertain():
    assert doubts(report()) == ["no vertebra and no disc was found: the mask is empty"]
    found = doubts(report(row("L4"), uncertain=True))
    assert found == ["the levels are uncertain (probability 0.71), see the .json beside the mask"]


def test_a_sacrum_without_its_disc():
    missing = ["no disc between L5 and S1 was found: S1 and the lordosis down to it are doubtful"]
    assert doubts(report(row("L5"), row("S1"))) == missing
    assert doubts(report(row("L5"), row("S1", cut=("inferior",)))) == []
    assert doubts(report(row("L5"), row("S1", cut=("left", "right")))) == missing  # of a narrow stack
    assert len(doubts(report(row("L5"), row("S1"), uncertain=True))) == 2


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
