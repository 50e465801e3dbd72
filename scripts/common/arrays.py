"""What NumPy and torch have no function for, or a slow one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import find_objects


def whole(shape: Sequence[int]) -> tuple[slice, ...]:
    """The box of all voxels."""
    return tuple(slice(0, n) for n in shape)


def occupied_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds what is true, shape XYZ; an empty tuple if nothing is."""
    sides = mask.any(0)  # or-ing whole slices is fast, along single rows it is not
    present = [np.flatnonzero(p) for p in (mask.reshape(len(mask), -1).any(1), sides.any(1), sides.any(0))]
    return tuple(slice(int(p[0]), int(p[-1]) + 1) for p in present if len(p))


def structure_boxes(label: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Channel -> the smallest box that holds its voxels, for all channels of a map of channel indices but the background."""
    return {channel: box for channel, box in enumerate(find_objects(label, max_label=255), start=1) if box}


def argmax_channels(scores: torch.Tensor) -> np.ndarray:
    """Index of the largest along the first axis, any shape behind it: argmax(0), which takes torch ten times as long."""
    best, top = np.zeros(scores.shape[1:], np.uint8), scores[0].float().numpy().copy()
    for channel in range(1, len(scores)):
        plane = scores[channel].float().numpy()
        best[plane > top] = channel
        np.maximum(top, plane, out=top)
    return best
