"""Rename the vertebrae of a mask, counted from the lowest one, where a scan got the wrong levels."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from nibabel.affines import apply_affine

from scripts.common.errors import CallError, UserError, did_you_mean
from scripts.data.volumes import voxel_mm3
from scripts.labels import label_table, of_kind
from scripts.levels.instances import Instance
from scripts.levels.level_sequence import LUMBAR
from scripts.levels.name_levels import absent_levels


def rename_levels(
    label: np.ndarray, affine: np.ndarray, lowest: str = "", lumbar: int = 0, where: str = "mask"
) -> tuple[np.ndarray, list[str]]:
    """Shift all names up or down the spine, so that the lowest body gets the right name; gaps keep their width.

    Args:
        label: channel indices, shape XYZ.
        affine: 4x4, voxel -> world mm.
        lowest: new name of the lowest body in the mask; empty keeps its name.
        lumbar: number of vertebrae between T12 and S1: 4, 5 or 6; 0 keeps the number in the mask, or five if it does not show.
        where: file name for the messages.

    Returns:
        channel indices, and the old names of discs that become background because the label table has none at their new place.

    Raises:
        CallError: if the label table lacks the level or the number of lumbar vertebrae.
        UserError: if the mask holds no body, or a body would lie above the first level of the table.
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
        number = next((n for n, lacking in LUMBAR.items() if lowest in _bodies_without(lacking)), None)  # spine that has this level
        hint = f" With --lumbar {number} there is {lowest}." if number else did_you_mean(lowest, after)
        raise CallError(f"{given}: choose one of {', '.join(after)}.{hint}")
    shift = after.index(lowest) - before.index(present[-1].name)
    if before.index(present[0].name) + shift < 0:
        first = present[0].name
        raise UserError(f"{where}: with {lowest} as the lowest body, what is {first} now would lie above {after[0]}, where names end")
    channel_of = {(s.level, s.kind): s.channel for s in table}  # the level of a disc is that of the body above it
    channels, lost = np.zeros(len(table), np.uint8), []
    for s in found:
        place = before.index(s.level) + shift
        channels[s.channel] = channel_of.get((after[place], s.kind), 0) if 0 <= place < len(after) else 0
        if not channels[s.channel]:
            lost.append(s.name)
    return channels[label], lost


def _lacking(lumbar: int) -> set[str]:
    """Return the levels that a spine of `lumbar` lumbar vertebrae lacks.

    Raises:
        CallError: if `LUMBAR` does not have the number, or the label table has too few levels for it.
    """
    names = {s.name for s in label_table()}
    possible = [number for number in sorted(LUMBAR) if number < 6 or "L6" in names]
    if lumbar not in possible:
        raise CallError(f"--lumbar {lumbar}: choose one of {', '.join(map(str, possible))}")
    return LUMBAR[lumbar]


def lumbar_number(names: Collection[str]) -> int:
    """Return how many lumbar vertebrae a spine with these body names has, for `rename_levels`: 4, 5 or 6."""
    if "L6" in names:
        return 6
    return 4 if {"L4", "S1"} <= {*names} and "L5" not in names else 5


def _bodies_without(absent: Collection[str]) -> list[str]:
    return [s.name for s in of_kind("body", absent)]


def _instance(label: np.ndarray, affine: np.ndarray, channel: int) -> Instance:
    voxels = np.argwhere(label == channel)
    return Instance(channel, apply_affine(affine, voxels.mean(0)), len(voxels) * voxel_mm3(affine))
