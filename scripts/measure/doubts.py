"""What a user should look at in a mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from scripts.common.errors import counted
from scripts.labels import names_disc, of_kind
from scripts.levels.cut import SIDES
from scripts.levels.renaming import lumbar_number
from scripts.measure.spine import SACRUM

UNCERTAIN, RENAMED = "the levels are uncertain", "the levels were named by hand"  # where such a line begins
# anterior height and angle of the disc above S1: below, it is rather S1 that is drawn wrongly
MIN_SACRAL_MM, MIN_SACRAL_DEG = 2.0, -3.0
# the public scans of the model card have 29 and more, or 17 and more; one that is upside down or back to front mostly has less
MIN_LORDOSIS_DEG = {"lordosis_deg": 15.0, "lordosis_l1_l5_deg": 5.0}
# in public labels up to 0.26, 23 and, but for a scoliosis, 19.5 percent; a Cobb angle of up to 13 degrees, but for two scolioses
MAX_OF_BODY = {"height_loss": 0.4, "wedge_deg": 30.0, "slip_percent": 25.0}
MAX_COBB_DEG = 20.0
# of bodies that the view does not cut, and of their volume to that of their neighbours; masks of public scans have 12,700, 16.1 to 31 and,
# but for a scoliosis, 0.75 and more, while noise leaves pieces of bodies, and two may have got one name
MIN_BODY_MM3, HEIGHTS_MM, MIN_SHARE = 10_000.0, (15.0, 40.0), 0.65


def picture_note(report: Mapping[str, Any]) -> str:
    """What stands over a mask: `levels uncertain (0.95)`, or `(no S1 in the mask)`, or `levels named by hand`, and how many other
    `warnings` its report has."""
    notes = ["levels named by hand"] if "renamed" in report else []
    if report.get("uncertain"):
        notes.append(f"levels uncertain ({_how_sure(report)})")
    if others := [line for line in report.get("warnings", []) if not line.startswith((UNCERTAIN, RENAMED))]:
        notes.append(counted(others, "warning"))
    return ", ".join(notes)


def _how_sure(report: Mapping[str, Any], word: str = "") -> str:
    """Two digits of the probability behind a word, not rounded: 0.96 is certain. Without the sacrum it would say little."""
    rows = report.get("structures")
    if rows and SACRUM in {s.name for s in of_kind("body")} - {row["name"] for row in rows}:
        return f"no {SACRUM} in the mask"
    return f"{word}{math.floor(100 * report['sequence_probability'] + 1e-9) / 100:.2f}"


def _likely_instead(report: Mapping[str, Any]) -> str:
    """The next likely names and, where they are those of the same bodies, how to give them."""
    if not (others := report.get("runner_up")):
        return ""
    names = f": perhaps {'-'.join(dict.fromkeys((others[0], others[-1])))}?"
    bodies = [row["name"] for row in report["structures"] if not names_disc(row["name"])]
    return f"{names} If so, rename --lowest {others[-1]} --lumbar {lumbar_number(others)}" if len(bodies) == len(others) else names


def doubts(report: Mapping[str, Any]) -> list[str]:
    """One line for each doubt about a mask, from its report: `structures` with `measures`, `spine`, and how `uncertain` the names are.

    Names that somebody has given (`renamed`) have a line, too.
    """
    if not report["structures"]:
        return ["no vertebra and no disc was found: the mask is empty"]
    found = named_by_hand(report)
    if report.get("uncertain"):
        found.append(f"{UNCERTAIN} ({_how_sure(report, 'probability ')}){_likely_instead(report)}")
    measured = {row["name"]: row.get("measures", {}) for row in report["structures"]}
    rows = {row["name"]: row for row in report["structures"] if row.get("volume_mm3", math.inf)}  # what is drawn
    above = "L6" if "L6" in rows else "L5"
    name, cut = f"{above}/S1", {*rows.get("S1", {}).get("cut_by_view", [])} - SIDES
    has_discs = any(names_disc(name) for name in rows)  # somebody's labels may be bodies alone
    if {above, "S1"} <= rows.keys() and has_discs and name not in rows and not cut:
        found.append(f"no disc between {above} and S1 was found: S1 and the lordosis down to it are doubtful")
    disc = measured.get(name)  # there are none where the view cuts through its end-plates
    if disc and (disc["anterior_height_mm"] < MIN_SACRAL_MM or disc["angle_deg"] < MIN_SACRAL_DEG):
        numbers = f"{disc['anterior_height_mm']} mm high in front, {disc['angle_deg']} degrees"
        found.append(f"{name} has an unusual shape ({numbers}): S1 and the lordosis down to it are doubtful")
    bodies = [row for name, row in rows.items() if not names_disc(name)]
    for side in ("left", "right"):
        if len(bodies) > 1 and all(side in row.get("cut_by_view", []) for row in bodies):
            found.append(f"every body is cut by the {side} side of the view: volumes and Cobb angles are those of parts")
    spine = report.get("spine", {})
    for key, least in MIN_LORDOSIS_DEG.items():
        if (lordosis := spine.get(key, least)) < least:
            found.append(f"a lordosis of {lordosis} degrees is unusual: is the scan upside down or back to front, or a level wrong?")
            break
    return found + _gaps(rows) + (_unmeasured(rows) if "spine" in report else []) + _unusual_shapes(rows, spine)


def named_by_hand(report: Mapping[str, Any]) -> list[str]:
    """The line that says which names somebody has given; nothing if nobody has."""
    if "renamed" not in report:
        return []
    of_lumbar = f", of {number} lumbar vertebrae" if (number := report["renamed"]["lumbar"]) else ""
    return [f"{RENAMED}: {report['renamed']['lowest']} is the lowest body{of_lumbar}"]


def _gaps(rows: Mapping[str, Any]) -> list[str]:
    """Levels that should lie between two that the mask holds; a spine of four lumbar vertebrae has no L5, most have no L6."""
    absent = {"L6"} - {*rows} | (set() if {"L5", "L6", "L5/S1"} & rows.keys() else {"L5"})
    bodies = [s.name for s in of_kind("body", absent)]
    present = [i for i, name in enumerate(bodies) if name in rows]
    missing = ["-".join(dict.fromkeys((bodies[a + 1], bodies[b - 1]))) for a, b in pairwise(present) if b - a > 1]
    return [f"no {', '.join(missing)} was found between the others: a vertebra is missed, or a level wrong"] if missing else []


def _unmeasured(rows: Mapping[str, Any]) -> list[str]:
    """Bodies without measures, though neither end of the view cuts them."""
    bodies = [name for name, row in rows.items() if not names_disc(name) and not {*row.get("cut_by_view", [])} - SIDES]
    hollow = [name for name in bodies if not rows[name].get("measures")]
    return [f"{', '.join(hollow)} could not be measured: no solid piece, far too small, or hardly in view"] if hollow else []


def _unusual_shapes(rows: Mapping[str, Any], spine: Mapping[str, Any]) -> list[str]:
    """Measures that an outline which has failed gives more often than a patient."""
    found = []
    for name, row in rows.items():
        body = row.get("measures", {})
        numbers = [f"{key} {body[key]}" for key, most in MAX_OF_BODY.items() if abs(body.get(key, 0.0)) >= most]
        if numbers := numbers + _odd_size(name, rows):
            found.append(f"{name} ({', '.join(numbers)})")
    if spine.get("cobb_deg", 0.0) >= MAX_COBB_DEG:
        found.append(f"the Cobb angle ({spine['cobb_deg']} degrees, {spine['cobb_levels']})")
    return [f"unusual: {', '.join(found)}. A disease, or an outline that has failed? Look at the picture"] if found else []


def _odd_size(name: str, rows: Mapping[str, Any]) -> list[str]:
    """Volume and height of a body, if bodies, or those beside it, have far more or less; nothing of one that the view cuts."""
    bodies = [other for other in rows if not names_disc(other)]
    is_whole = {other: other != "S1" and not rows[other].get("cut_by_view") for other in bodies}
    volumes = {other: rows[other]["volume_mm3"] for other in bodies if is_whole[other] and "volume_mm3" in rows[other]}
    if name not in volumes:
        return []
    place, found = bodies.index(name), []
    beside = [volumes[other] for other in (*bodies[max(0, place - 1) : place], *bodies[place + 1 : place + 2]) if other in volumes]
    if volumes[name] < max(MIN_BODY_MM3, MIN_SHARE * sum(beside) / max(1, len(beside))):
        found.append(f"volume_mm3 {volumes[name]:.0f}")
    height_mm = rows[name].get("measures", {}).get("middle_height_mm", HEIGHTS_MM[0])
    return found + ([] if HEIGHTS_MM[0] <= height_mm <= HEIGHTS_MM[1] else [f"middle_height_mm {height_mm}"])
