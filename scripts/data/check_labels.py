"""Check label files before a training begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from tqdm import tqdm

from scripts.common.errors import UserError
from scripts.data.volumes import Volume, grid_mismatch, not_on_grid, read_grid, read_volume
from scripts.labels import Structure, anatomical_order, encode, label_table, numbers

TOLERANCE_MM = 5.0  # a structure may lie so far above the preceding one, as oblique discs do; exchanged levels are at least 15 mm apart


def check_labels(entries: Iterable[Mapping[str, Any]], label_scheme: str = "verse") -> None:
    """Refuse bad label files: read each with the grid of its scan. Only the first of several processes does so.

    Args:
        entries: entries of a datalist, with `image` and `label`; repeated pairs are read once.
        label_scheme: scheme of the numbers in files whose entries name none.

    Raises:
        UserError: with a line for every problem of every file, see `label_problems`.
    """
    pairs = list(dict.fromkeys((str(e["label"]), str(e["image"]), e.get("label_scheme", label_scheme)) for e in entries))
    if idist.get_rank() > 0:
        return
    problems = [line for pair in tqdm(pairs, desc="check labels", unit="scan") for line in _problems_of(*pair)]
    if problems:
        raise UserError("\n".join(problems))


def _problems_of(label: str, image: str, label_scheme: str) -> list[str]:
    try:
        return label_problems(read_volume(label), label, image, read_grid(image), label_scheme)[1]
    except UserError as error:
        return [str(error)]


def label_problems(
    label: Volume, where: str, image: str | Path, grid: tuple[tuple[int, ...], np.ndarray] | None, label_scheme: str = "verse"
) -> tuple[np.ndarray, list[str]]:
    """Return the channel indices of a label map, and its problems: another grid, no foreground, levels out of order.

    Args:
        label: label map in the numbers of `label_scheme`.
        where: file of the label map.
        image: file of the scan.
        grid: shape and affine of the scan; None if that could not be read.
        label_scheme: `verse`, `channel`, `spider` or `totalspineseg`.

    Raises:
        UserError: for unknown or fractional values.
    """
    problems = []
    if grid and (mismatch := grid_mismatch(*grid, label.data.shape, label.affine)):
        problems.append(not_on_grid(where, image, mismatch))
    channels = encode(label.data, where, label_scheme)
    if not channels.any():
        problems.append(f"{where}: no foreground, all values are 0. Label it, or leave the scan out.")
    return channels, problems + [f"{where}: {line}" for line in order_problems(channels, label.affine, label_scheme)]


def order_problems(channels: np.ndarray, affine: np.ndarray, label_scheme: str = "verse") -> list[str]:
    """Report levels that lie above the preceding one of the table, in a single line if all of them do.

    Args:
        channels: channel indices, shape XYZ.
        affine: voxel -> RAS world in mm.
        label_scheme: scheme of the numbers in the messages.
    """
    voxels = np.nonzero(channels)
    values = channels[voxels]
    counts = np.bincount(values, minlength=len(label_table()))
    above = sum(axis * step for axis, step in zip(voxels, affine[2, :3]))
    height = np.bincount(values, weights=above, minlength=len(counts)) / np.maximum(counts, 1)
    present = [label_table()[c] for c in anatomical_order() if counts[c]]
    pairs = [(a, b, height[b.channel] - height[a.channel]) for a, b in pairwise(present)]
    wrong = [pair for pair in pairs if pair[2] > TOLERANCE_MM]

    in_file = numbers(channels, label_scheme)

    def named(structure: Structure) -> str:
        return f"{structure.name} ({in_file[structure.channel]})" if in_file[structure.channel] else structure.name

    if len(wrong) > 1 and len(wrong) == len(pairs):
        first, last = present[0], present[-1]
        return [
            f"numbered upside down, {named(last)} lies above {named(first)}. Levels count from head to feet; or the scan's header is wrong."
        ]
    return [
        f"{named(b)} lies {rise:.0f} mm above {named(a)}, which should be the other way round. Correct the numbers." for a, b, rise in wrong
    ]
