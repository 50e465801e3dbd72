"""List what a user should check in a mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from scripts.common.errors import counted
from scripts.labels import names_disc, of_kind
from scripts.levels.cut import SIDES
from scripts.levels.name_levels import MIN_CERTAIN_PROBABILITY
from scripts.levels.renaming import lumbar_number
from scripts.measure.spine import SACRUM

UNCERTAIN, RENAMED = "the levels are uncertain", "the levels were named by hand"  # how the lines on names begin
# lowest plausible anterior height and angle of the disc above S1; below them, S1 is more likely drawn wrongly
MIN_SACRAL_MM, MIN_SACRAL_DEG = 2.0, -3.0
# the public scans of the model card have at least 29 and 17 degrees; a scan upside down or back to front mostly has less than this
MIN_LORDOSIS_DEG = {"lordosis_deg": 15.0, "lordosis_l1_l5_deg": 5.0}
# public labels reach 0.26, 23 degrees and, except for a scoliosis, 19.5 percent; Cobb angles reach 13 degrees, except for two scolioses
MAX_OF_BODY = {"height_loss": 0.4, "wedge_deg": 30.0, "slip_percent": 25.0}
MAX_COBB_DEG = 20.0
# bounds for bodies that the view does not cut; the last is the volume relative to the neighbours. Masks of public scans have at least
# 12,700 mm3, 16.1 to 31 mm and, except for a scoliosis, at least 0.75. Noise leaves pieces of bodies, and two bodies may get one name.
MIN_BODY_MM3, HEIGHTS_MM, MIN_VOLUME_RATIO = 10_000.0, (15.0, 40.0), 0.65


def picture_note(report: Mapping[str, Any]) -> str:
    """Return a short note on a mask for its picture.

    It says `levels uncertain (0.95)`, `levels uncertain (no S1 in the mask)` or `levels named by hand`, and how many other `warnings` the
    report has.
    """
    notes = ["levels named by hand"] if "renamed" in report else []
    if report.get("uncertain") and report.get("structures", True):  # an empty mask has no levels
        notes.append(f"levels uncertain ({_how_sure(report)})")
    if others := [line for line in report.get("warnings", []) if not line.startswith((UNCERTAIN, RENAMED))]:
        notes.append(counted(others, "warning"))
    return ", ".join(notes)


def lacks_sacrum(report: Mapping[str, Any]) -> bool:
    """Return True if structures were found, but no sacrum, without which the probability of the names says little."""
    rows = report.get("structures")
    return bool(rows) and SACRUM in {s.name for s in of_kind("body")} - {row["name"] for row in rows}


def _how_sure(report: Mapping[str, Any], word: str = "") -> str:
    """Return why the names are uncertain, such as their probability after `word`, rounded down because 0.96 is certain."""
    if lacks_sacrum(report):
        return f"no {SACRUM} in the mask"
    if report["sequence_probability"] >= MIN_CERTAIN_PROBABILITY:
        return "a level is missing"
    return f"{word}{math.floor(100 * report['sequence_probability'] + 1e-9) / 100:.2f}"


def _likely_instead(report: Mapping[str, Any]) -> str:
    """Return the second most likely names and, if they name the same bodies, the options of `rename` that set them."""
    if not (others := report.get("runner_up")):
        return ""
    names = f": perhaps {'-'.join(dict.fromkeys((others[0], others[-1])))}?"
    bodies = [row["name"] for row in report["structures"] if not names_disc(row["name"])]
    return f"{names} If so, rename --lowest {others[-1]} --lumbar {lumbar_number(others)}" if len(bodies) == len(others) else names


def doubts(report: Mapping[str, Any]) -> list[str]:
    """Return a line for each doubt about a mask, and for names that somebody has given (`renamed`).

    Args:
        report: report on the mask: `structures` with `measures`, `spine`, and whether the names are `uncertain`.
    """
    if not report["structures"]:
        return ["no vertebra and no disc was found: the mask is empty"]
    drawn = {row["name"]: row for row in report["structures"] if row.get("volume_mm3", math.inf)}  # a disc may only be measured
    spine, odd_disc = report.get("spine", {}), _odd_sacral_disc(report, drawn)
    return [
        *named_by_hand(report),
        *_uncertain_levels(report),
        *_missing_sacral_disc(drawn),
        *odd_disc,
        *_cut_sides(drawn),
        *_odd_lordosis(spine, bool(odd_disc)),
        *_gaps(drawn),
        *(_unmeasured(drawn) if "spine" in report else []),
        *_unusual_shapes(drawn, spine),
    ]


def _uncertain_levels(report: Mapping[str, Any]) -> list[str]:
    if not report.get("uncertain"):
        return []
    return [f"{UNCERTAIN} ({_how_sure(report, 'probability ')}){_likely_instead(report)}"]


def _above_sacrum(drawn: Mapping[str, Any]) -> str:
    return "L6" if "L6" in drawn else "L5"


def _missing_sacral_disc(drawn: Mapping[str, Any]) -> list[str]:
    """Say if S1 and the body above it are drawn without a disc, unless the view cuts S1 or no disc is labelled at all."""
    above = _above_sacrum(drawn)
    cut = {*drawn.get("S1", {}).get("cut_by_view", [])} - SIDES
    has_discs = any(map(names_disc, drawn))  # labels of other people may hold bodies only
    if {above, "S1"} <= drawn.keys() and has_discs and f"{above}/S1" not in drawn and not cut:
        return [f"no disc between {above} and S1 was found: S1 and the lordosis down to it are doubtful"]
    return []


def _odd_sacral_disc(report: Mapping[str, Any], drawn: Mapping[str, Any]) -> list[str]:
    name = f"{_above_sacrum(drawn)}/S1"
    disc = {row["name"]: row.get("measures", {}) for row in report["structures"]}.get(name)
    # there are no measures if the view cuts through its end-plates
    if disc and (disc["anterior_height_mm"] < MIN_SACRAL_MM or disc["angle_deg"] < MIN_SACRAL_DEG):
        numbers = f"{disc['anterior_height_mm']} mm high in front, {disc['angle_deg']} degrees"
        return [f"{name} has an unusual shape ({numbers}): S1 and the lordosis down to it are doubtful"]
    return []


def _cut_sides(drawn: Mapping[str, Any]) -> list[str]:
    # bodies at the ends of the view may be slivers
    bodies = [row for name, row in drawn.items() if not names_disc(name) and not {*row.get("cut_by_view", [])} - SIDES]
    sides = [side for side in ("left", "right") if len(bodies) > 1 and all(side in row.get("cut_by_view", []) for row in bodies)]
    return [f"every body is cut by the {side} side of the view: volumes and Cobb angles are those of parts" for side in sides]


def _odd_lordosis(spine: Mapping[str, Any], disc_is_odd: bool) -> list[str]:
    """Return one line on the first lordosis that is too small, or on one down to S1 that is smaller than its part down to L5.

    The latter is not told if the disc above S1 is odd, which has a line of its own.
    """
    for key, least in MIN_LORDOSIS_DEG.items():
        if (lordosis := spine.get(key, least)) < least:
            return [f"a lordosis of {lordosis} degrees is unusual: is the scan upside down or back to front, or a level wrong?"]
    whole, part = spine.get("lordosis_deg", math.inf), spine.get("lordosis_l1_l5_deg", -math.inf)
    if whole < part and not disc_is_odd:
        return [f"the lordosis L1-S1 ({whole} degrees) is smaller than L1-L5 ({part} degrees): the end-plate of L5 or S1 is doubtful"]
    return []


def named_by_hand(report: Mapping[str, Any]) -> list[str]:
    """Return the line on the names that somebody has given, if anybody has."""
    if "renamed" not in report:
        return []
    of_lumbar = f", of {number} lumbar vertebrae" if (number := report["renamed"]["lumbar"]) else ""
    return [f"{RENAMED}: {report['renamed']['lowest']} is the lowest body{of_lumbar}"]


def _gaps(drawn: Mapping[str, Any]) -> list[str]:
    """Report levels missing between two levels of the mask; a spine of four lumbar vertebrae has no L5, and most have no L6."""
    absent = set()
    if "L6" not in drawn:
        absent.add("L6")
    if not {"L5", "L6", "L5/S1"} & drawn.keys():
        absent.add("L5")
    bodies = [s.name for s in of_kind("body", absent)]
    present = [i for i, name in enumerate(bodies) if name in drawn]
    missing = ["-".join(dict.fromkeys((bodies[a + 1], bodies[b - 1]))) for a, b in pairwise(present) if b - a > 1]
    return [f"no {', '.join(missing)} was found between the others: a vertebra is missed, or a level wrong"] if missing else []


def _unmeasured(drawn: Mapping[str, Any]) -> list[str]:
    """Report bodies without measures although the view cuts them at the sides at most."""
    bodies = [name for name, row in drawn.items() if not names_disc(name) and not {*row.get("cut_by_view", [])} - SIDES]
    hollow = [name for name in bodies if not drawn[name].get("measures")]
    return [f"{', '.join(hollow)} could not be measured: no solid piece, far too small, or hardly in view"] if hollow else []


def _unusual_shapes(drawn: Mapping[str, Any], spine: Mapping[str, Any]) -> list[str]:
    """Report measures that are more often due to a failed outline than to a patient."""
    found = []
    for name, row in drawn.items():
        body = row.get("measures", {})
        numbers = [f"{key} {body[key]}" for key, most in MAX_OF_BODY.items() if abs(body.get(key, 0.0)) >= most]
        if numbers := numbers + _odd_size(name, drawn):
            found.append(f"{name} ({', '.join(numbers)})")
    if spine.get("cobb_deg", 0.0) >= MAX_COBB_DEG:
        found.append(f"the Cobb angle ({spine['cobb_deg']} degrees, {spine['cobb_levels']})")
    return [f"unusual: {', '.join(found)}. A disease, or an outline that has failed? Look at the picture"] if found else []


def _odd_size(name: str, drawn: Mapping[str, Any]) -> list[str]:
    """Return the volume and the height of a body if they are far from usual or from those of its neighbours, unless the view cuts it."""
    bodies = [other for other in drawn if not names_disc(other)]
    is_whole = {other: other != "S1" and not drawn[other].get("cut_by_view") for other in bodies}
    volumes = {other: drawn[other]["volume_mm3"] for other in bodies if is_whole[other] and "volume_mm3" in drawn[other]}
    if name not in volumes:
        return []
    place, found = bodies.index(name), []
    beside = [volumes[other] for other in (*bodies[max(0, place - 1) : place], *bodies[place + 1 : place + 2]) if other in volumes]
    if volumes[name] < max(MIN_BODY_MM3, MIN_VOLUME_RATIO * sum(beside) / max(1, len(beside))):
        found.append(f"volume_mm3 {volumes[name]:.0f}")
    height_mm = drawn[name].get("measures", {}).get("middle_height_mm", HEIGHTS_MM[0])
    return found + ([] if HEIGHTS_MM[0] <= height_mm <= HEIGHTS_MM[1] else [f"middle_height_mm {height_mm}"])
