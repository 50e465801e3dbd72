"""What a user should look at in a mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# anterior height and angle of the disc above S1: below, it is rather S1 that is drawn wrongly
LEAST_SACRAL_MM, LEAST_SACRAL_DEG = 2.0, -3.0
LEAST_LORDOSIS_DEG = 15.0  # from L1 to S1; the public scans of the model card have 29 and more, one that was turned upside down had 9


def names_note(report: Mapping[str, Any]) -> str:
    """`levels uncertain (0.95)` or `levels renamed by hand` for a report that says so, else an empty text."""
    if "renamed" in report:
        return "levels renamed by hand"
    return f"levels uncertain ({_cut_off(report['sequence_probability'])})" if report.get("uncertain") else ""


def _cut_off(probability: float) -> str:
    """Two digits, not rounded: 0.96 is certain."""
    return f"{math.floor(100 * probability + 1e-9) / 100:.2f}"


def doubts(report: Mapping[str, Any]) -> list[str]:
    """One line for each doubt about a mask, from its report: `structures` with `measures`, `spine`, and how `uncertain` the names are."""
    if not report["structures"]:
        return ["no vertebra and no disc was found: the mask is empty"]
    found = []
    if report.get("uncertain"):
        found.append(f"the levels are uncertain (probability {_cut_off(report['sequence_probability'])}), see the .json beside the mask")
    rows = {row["name"]: row for row in report["structures"]}
    above = "L6" if "L6" in rows else "L5"
    name, cut = f"{above}/S1", {*rows.get("S1", {}).get("cut_by_view", [])} - {"left", "right"}
    if {above, "S1"} <= rows.keys() and name not in rows and not cut:
        found.append(f"no disc between {above} and S1 was found: S1 and the lordosis down to it are doubtful")
    disc = rows.get(name, {}).get("measures", {})  # there are none where the view cuts through its end-plates
    if disc and (disc["anterior_height_mm"] < LEAST_SACRAL_MM or disc["angle_deg"] < LEAST_SACRAL_DEG):
        numbers = f"{disc['anterior_height_mm']} mm high in front, {disc['angle_deg']} degrees"
        found.append(f"{name} has an unusual shape ({numbers}): S1 and the lordosis down to it are doubtful")
    if (lordosis := report.get("spine", {}).get("lordosis_deg", LEAST_LORDOSIS_DEG)) < LEAST_LORDOSIS_DEG:
        found.append(f"a lordosis of {lordosis} degrees is unusual: is the scan upside down, or S1 another vertebra?")
    return found
