"""From class logits on the working grid to a label map on the scan's own grid."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import grid_sample

CHUNK_VOXELS = 2**20  # output voxels resampled at a time: bounds the memory to about 100 MB for 24 classes


def restore_label_map(
    logits: torch.Tensor, affine: np.ndarray, target_affine: np.ndarray, target_shape: tuple[int, int, int]
) -> torch.Tensor:
    """Interpolate class logits linearly on another grid and take the largest: label map, uint8, shape `target_shape`.

    Like resampling every class volume and an argmax, without ever holding the class volumes: only the box around what is not
    background is visited, in chunks, and only the classes that are the largest somewhere on the working grid are interpolated.

    Args:
        logits: shape CXYZ.
        affine: 4x4, voxel of `logits` -> world mm.
        target_affine: 4x4, voxel of the result -> world mm.
        target_shape: of the result; voxels outside the grid of `logits` are background, but for the half voxel at its rim.
    """
    result = torch.zeros(target_shape, dtype=torch.uint8)
    coarse = torch.from_numpy(largest(logits.cpu()))
    occupied = (coarse > 0).nonzero().numpy()
    if not len(occupied):
        return result
    to_source = np.linalg.inv(affine) @ target_affine
    box = _target_box(occupied.min(0) - 1.5, occupied.max(0) + 1.5, np.linalg.inv(to_source), target_shape)
    channels = torch.tensor([0, *(c for c in np.unique(coarse) if c)])
    source = logits[channels].float()[None]
    size = torch.tensor(source.shape[2:], dtype=torch.float64, device=logits.device)
    matrix = torch.as_tensor(to_source, dtype=torch.float64, device=logits.device)
    axes = [torch.arange(s.start, s.stop, dtype=torch.float64, device=logits.device) for s in box]
    if min(len(a) for a in axes) == 0:
        return result
    step = max(1, CHUNK_VOXELS // (len(axes[1]) * len(axes[2])))
    for rows in axes[0].split(step):
        voxel = (
            sum(a[..., None] * matrix[:3, i] for i, a in enumerate(torch.meshgrid(rows, axes[1], axes[2], indexing="ij"))) + matrix[:3, 3]
        )
        inside = ((voxel > -0.5) & (voxel < size - 0.5)).all(-1)
        grid = (2 * voxel / (size - 1).clamp(min=1) - 1).float().flip(-1)[None]  # grid_sample: last axis first, corners at -1 and 1
        best = torch.from_numpy(largest(grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=True)[0].cpu()))
        first = int(rows[0])
        result[first : first + len(rows), box[1], box[2]] = (channels[best.long()] * inside.cpu()).to(torch.uint8)
    return result


def largest(scores: torch.Tensor) -> np.ndarray:
    """Index of the largest along the first axis, shape XYZ: argmax(0), which takes torch ten times as long."""
    best, top = np.zeros(scores.shape[1:], np.uint8), scores[0].float().numpy().copy()
    for channel in range(1, len(scores)):
        plane = scores[channel].float().numpy()
        best[plane > top] = channel
        np.maximum(top, plane, out=top)
    return best


def _target_box(low: np.ndarray, high: np.ndarray, to_target: np.ndarray, shape: tuple[int, int, int]) -> tuple[slice, ...]:
    """Box of target voxels that covers the source box `low`..`high` (voxel coordinates)."""
    corners = np.stack(np.meshgrid(*zip(low, high), indexing="ij"), -1).reshape(-1, 3) @ to_target[:3, :3].T + to_target[:3, 3]
    start = np.clip(np.floor(corners.min(0)), 0, shape).astype(int)
    stop = np.clip(np.ceil(corners.max(0)) + 1, 0, shape).astype(int)
    return tuple(slice(a, max(a, b)) for a, b in zip(start, stop))
