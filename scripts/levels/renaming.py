"""Other names for the vertebrae of a mask, counted from the lowest one: what to do where a scan got the wrong levels."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from nibabel.affines import apply_affine

from scripts.common.errors import CallError, UserError, did_you_mean
from scripts.data.volumes import voxel_mm3
from scripts.labels import label_table, of_kind
from scripts.levels.instances import Instance
from scripts.levels.name_levels import absent_levels
from scripts.levels.naming import LUMBAR


def rename_levels(
    label: np.ndarray, affine: np.ndarray, lowest: str = "", lumbar: int = 0, where: str = "mask"
) -> tuple[np.ndarray, list[str]]:
    """Shift all names up or down the spine, so that its lowest body gets the right one; gaps stay as wide as they are.

    Args:
        label: channel indices, shape XYZ.
        affine: 4x4, voxel -> world mm.
        lowest: name of the lowest body that the mask holds; empty: the one that it has.
        lumbar: vertebrae between T12 and S1: 4, 5 or 6; 0: as many as it has, five if that cannot be seen.
        where: file name for the messages.

    Returns:
        channel indices, and the old names of discs that are background now, because the label table has none at their new place.

    Raises:
        CallError: for a level or a number of lumbar vertebrae that the label table lacks.
        UserError: if the mask holds no body, or one would lie above the first level of the table.
    """
    table = label_table()
    found = [table[channel] for channel in np.unique(label[label > 0])]
    present = [s for s in found if s.kind == "body"]
    if not present:
        raise UserError(f"{where}: there is no vertebral body to count from")
    absent = absent_levels([(_instance(label, affine, s.channel), s.channel) for s in present])
    absent -= {s.level for s in found}
    before, after = _bodies_without(absent), _bodies_without(_lacking(lumbar) if lumbar else absent)
    lowest = next((name for name in after if name == lowest.upper()), lowest) or present[-1].name
    if lowest not in after:
        given = f"--lowest {lowest}{f' --lumbar {lumbar}' if lumbar else ''}"
        number = next((n for n, lacking in LUMBAR.items() if lowest in _bodies_without(lacking)), None)  # the level exists in such a spine
        hint = f" With --lumbar {number} there is {lowest}." if number else did_you_mean(lowest, after)
        raise CallError(f"{given}: choose one of {', '.join(after)}.{hint}")
    shift = after.index(lowest) - before.index(present[-1].name)
    if before.index(present[0].name) + shift < 0:
        first = present[0].name
        raise UserError(f"{where}: with {lowest} as the lowest body, what is {first} now would lie above {after[0]}, where names end")
    of_level = {(s.level, s.kind): s.channel for s in table}  # a disc belongs to the body above it
    channels, lost = np.zeros(len(table), np.uint8), []
    for s in found:
        place = before.index(s.level) + shift
        channels[s.channel] = of_level.get((after[place], s.kind), 0) if 0 <= place < len(after) else 0
        if not channels[s.channel]:
            lost.append(s.name)
    return channels[label], lost


def _lacking(lumbar: int) -> set[str]:
    """
    Raises:
        CallError: for another number than that of `LUMBAR`, or if the label table has too few levels for it.
    """
    names = {s.name for s in label_table()}
    possible = [number for number in sorted(LUMBAR) if number < 6 or "L6" in names]
    if lumbar not in possible:
        raise CallError(f"--lumbar {lumbar}: choose one of {', '.join(map(str, possible))}")
    return LUMBAR[lumbar]


def lumbar_number(names: Collection[str]) -> int:
    """How many lumbar vertebrae a spine has whose bodies have these names, as `rename_levels` takes it: 4, 5 or 6."""
    return 6 if "L6" in names else 4 if {"L4", "S1"} <= {*names} and "L5" not in names else 5


def _bodies_without(absent: Collection[str]) -> list[str]:
    return [s.name for s in of_kind("body", absent)]


def _instance(label: np.ndarray, affine: np.ndarray, channel: int) -> Instance:
    voxels = np.argwhere(label == channel)
    return Instance(channel, apply_affine(affine, voxels.mean(0)), len(voxels) * voxel_mm3(affine))
