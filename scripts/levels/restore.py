"""Turn class logits on the working grid into a label map on the grid of the scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import grid_sample

from scripts.common.arrays import occupied_box, whole
from scripts.data.resampling import interpolate_straight, straight_axes

CHUNK_VOXELS = 2**20  # output voxels resampled at a time for oblique axes, which bounds the memory to about 100 MB


@dataclass(frozen=True)
class ClassLogits:
    """Class logits on one grid, each class but the background only in a box.

    Outside its box, and in the outermost voxels of the box unless the grid ends there, a class is never the largest. For a lumbar
    spine, 24 whole volumes would take 0.4 GB, and half as long to fill as the network takes.
    """

    background: torch.Tensor  # shape XYZ
    boxes: dict[int, tuple[tuple[slice, ...], torch.Tensor]]  # class -> its box, and its logits in the box

    @classmethod
    def of(cls, logits: torch.Tensor) -> ClassLogits:
        """Wrap a tensor, CXYZ, without a copy if it is float32 on the CPU."""
        first, *others = logits.float().cpu()
        return cls(first, {channel: (whole(first.shape), values) for channel, values in enumerate(others, start=1)})


def restore_label_map(
    logits: ClassLogits, affine: np.ndarray, target_affine: np.ndarray, target_shape: tuple[int, int, int]
) -> torch.Tensor:
    """Interpolate class logits linearly on another grid and take the largest: label map, uint8, shape `target_shape`.

    The result is that of resampling every class volume followed by an argmax, without ever holding the class volumes. A class can only
    win next to voxels in which it is ahead of background, so it is interpolated only in the box around those.

    Args:
        logits: class logits; `ClassLogits.of` makes them from a tensor.
        affine: 4x4, voxel of `logits` -> world mm.
        target_affine: 4x4, voxel of the result -> world mm.
        target_shape: shape of the result; voxels more than half a voxel outside the grid of `logits` are background.
    """
    result = torch.zeros(target_shape, dtype=torch.uint8)
    to_source = np.linalg.inv(affine) @ target_affine
    boxes = {}
    for channel, (own, values) in logits.boxes.items():
        if ahead := occupied_box((values > logits.background[own]).numpy()):
            low = [s.start + a.start - 1.5 for s, a in zip(own, ahead)]
            high = [s.start + a.stop + 0.5 for s, a in zip(own, ahead)]
            box = _target_box(low, high, np.linalg.inv(to_source), target_shape)
            if all(s.start < s.stop for s in box):
                boxes[channel] = box
    if not boxes:
        return result
    region = tuple(slice(min(b[a].start for b in boxes.values()), max(b[a].stop for b in boxes.values())) for a in range(3))
    best = _interpolate(logits.background, to_source, region).clone()  # on the same grid, interpolation returns the volume itself
    for channel, box in boxes.items():
        own, values = logits.boxes[channel]
        to_own = to_source.copy()
        to_own[:3, 3] -= [s.start for s in own]
        part = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, region))
        values = _interpolate(values, to_own, box)
        wins = values > best[part]
        result[box][wins] = channel
        best[part] = torch.maximum(best[part], values)
    return result


def _interpolate(volume: torch.Tensor, to_source: np.ndarray, box: tuple[slice, ...]) -> torch.Tensor:
    """Interpolate a volume (XYZ) in the target voxels of `box`; -inf more than half a voxel outside the volume."""
    if axes := straight_axes(to_source, box):
        return interpolate_straight(volume, to_source, box, axes)
    size = torch.tensor(volume.shape, dtype=torch.float64)
    matrix = torch.as_tensor(to_source, dtype=torch.float64)
    axes = [torch.arange(s.start, s.stop, dtype=torch.float64) for s in box]
    result = []
    for rows in axes[0].split(max(1, CHUNK_VOXELS // (len(axes[1]) * len(axes[2])))):
        voxel = (
            sum(a[..., None] * matrix[:3, i] for i, a in enumerate(torch.meshgrid(rows, axes[1], axes[2], indexing="ij"))) + matrix[:3, 3]
        )
        outside = ((voxel <= -0.5) | (voxel >= size - 0.5)).any(-1)
        # grid_sample wants the last axis first, corners at -1 and 1
        grid = (2 * voxel / (size - 1).clamp(min=1) - 1).float().flip(-1)[None]
        values = grid_sample(volume[None, None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0, 0]
        result.append(values.masked_fill_(outside, -torch.inf))
    return torch.cat(result)


def _target_box(low: Sequence[float], high: Sequence[float], to_target: np.ndarray, shape: tuple[int, int, int]) -> tuple[slice, ...]:
    """Return the box of target voxels that covers the source box `low`..`high` (voxel coordinates)."""
    corners = np.stack(np.meshgrid(*zip(low, high), indexing="ij"), -1).reshape(-1, 3) @ to_target[:3, :3].T + to_target[:3, 3]
    start = np.clip(np.floor(corners.min(0)), 0, shape).astype(int)
    stop = np.clip(np.ceil(corners.max(0)) + 1, 0, shape).astype(int)
    return tuple(slice(int(a), int(max(a, b))) for a, b in zip(start, stop))
