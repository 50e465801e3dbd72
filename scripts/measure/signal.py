"""Measure how bright the structures of a mask are in a scan, to read disc signal, marrow and maps of the fat fraction."""

from __future__ import annotations

import numpy as np
from nibabel.affines import voxel_sizes

from scripts.common.arrays import occupied_box, structure_boxes
from scripts.labels import label_table

RIM_MM = 2.0  # left out at the border of a structure, or one voxel if that is more, because border voxels hold a part of what is beside it
DIGITS = 4  # significant digits, because signals are hundreds in a scan and hundredths in a map of fat fractions


def measure_signals(label: np.ndarray, scan: np.ndarray, affine: np.ndarray) -> dict[str, dict[str, float]]:
    """Return `signal_mean`, `signal_sd` (population) and `signal_median` of every structure without its rim, in the units of the scan.

    A voxel belongs to the rim if another label, or none, lies within `RIM_MM` along an axis; the end of the volume is no border.

    Args:
        label: channel indices, shape XYZ.
        scan: scan on the same grid; NaN marks missing values, which do not count.
        affine: 4x4, voxel -> world mm.

    Returns:
        the statistics by name of structure; structures that are all rim, or without any value, are left out.
    """
    occupied = occupied_box(label > 0)
    if not occupied:
        return {}
    rim = [max(1, round(RIM_MM / spacing_mm)) for spacing_mm in voxel_sizes(affine)]
    box = tuple(slice(max(0, s.start - voxels), s.stop + voxels) for s, voxels in zip(occupied, rim))
    label, scan = label[box], scan[box]
    core = label.copy()
    for axis, voxels in enumerate(rim):
        for step in range(1, voxels + 1):
            here, there = (tuple(slice(*ends) if a == axis else slice(None) for a in range(3)) for ends in ((step, None), (None, -step)))
            differ = label[here] != label[there]
            core[here][differ] = 0
            core[there][differ] = 0
    found = {}
    for channel, part in structure_boxes(core).items():
        values = scan[part][core[part] == channel].astype(np.float64)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        statistics = {"signal_mean": values.mean(), "signal_sd": values.std(), "signal_median": np.median(values)}
        found[label_table()[channel].name] = {key: float(f"{value:.{DIGITS}g}") for key, value in statistics.items()}
    return found
