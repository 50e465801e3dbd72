"""Sliding-window inference with windows that follow the spine; MONAI's windows cover a whole box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import pad

from scripts.common.arrays import occupied_box

Box = tuple[slice, ...]  # voxels of an image, one slice per axis


def box_around(seen: torch.Tensor, margin: Sequence[int]) -> Box:
    """Return the bounding box of the true voxels (XYZ, not all false) with a margin in voxels, clipped to the map."""
    box = occupied_box(seen.cpu().numpy())
    return tuple(slice(max(0, s.start - m), min(s.stop + m, n)) for s, m, n in zip(box, margin, seen.shape))


def scaled(box: Box, voxel: Sequence[int]) -> Box:
    """Convert a box of coarse voxels to fine voxels."""
    return tuple(slice(s.start * v, s.stop * v) for s, v in zip(box, voxel))


def spine_windows(
    seen: torch.Tensor, voxel: Sequence[int], margin: Sequence[int], shape: Sequence[int], roi_size: Sequence[int], overlap: float
) -> list[Box]:
    """Return windows that cover every coarse voxel of the spine, and a margin around it.

    The last axis, along the spine, is divided into slabs, and every slab has a box of its own: a spine is curved, so a grid of windows
    over the box around all of it would be half empty.

    Args:
        seen: where the spine is, boolean, coarse XYZ, not all false.
        voxel: size of a coarse voxel in fine ones.
        margin: in coarse voxels.
        shape: of the image in fine voxels.
        roi_size: of a window.
        overlap: share of a window that its neighbour covers too, at least.

    Returns:
        boxes of `roi_size` in fine voxels, which reach beyond the image on both sides where it is smaller than that.
    """
    along = scaled(box_around(seen, margin), voxel)[2]
    beyond = max(0, margin[2] - int(overlap * roi_size[2]) // voxel[2])  # coarse voxels of the margin that neighbouring slabs miss
    windows = []
    for start in _starts(along, roi_size[2], shape[2], overlap):
        first, last = start // voxel[2] - beyond, math.ceil((start + roi_size[2]) / voxel[2]) + beyond
        slab = seen[:, :, max(0, first) : last]
        if not slab.any():  # between two pieces of a spine
            continue
        box = scaled(box_around(slab, margin), voxel)
        right, front = (_starts(box[axis], roi_size[axis], shape[axis], overlap) for axis in (0, 1))
        windows += [tuple(slice(a, a + n) for a, n in zip((x, y, start), roi_size)) for x in right for y in front]
    return windows


def _starts(part: slice, size: int, end: int, overlap: float) -> list[int]:
    """Return the first voxels of evenly spread windows of `size` that cover `part` of an axis of `end` voxels, within it if they fit."""
    length = min(part.stop, end) - part.start
    if length <= size or end <= size:
        centred = part.start + (length - size) // 2
        return [min(max(centred, 0), end - size) if end > size else (end - size) // 2]
    count = math.ceil((length - size) / (size * (1 - overlap))) + 1
    return [part.start + round(i * (length - size) / (count - 1)) for i in range(count)]


def draw_windows(
    image: torch.Tensor,
    windows: Sequence[Box],
    box: Box,
    predict: Callable[[torch.Tensor], torch.Tensor],
    importance: torch.Tensor,
    batch: int,
) -> torch.Tensor:
    """Predict windows of an image and blend them in a box.

    Args:
        image: shape 11XYZ.
        windows: see `spine_windows`; beyond the image they are padded with 0.
        box: part of the image; whatever windows predict outside it is dropped.
        predict: batch of windows (B1...) -> logits (BC...), background first.
        importance: weight of each voxel of a window, positive, in the shape of a window.
        batch: windows at a time.

    Returns:
        the weighted mean, 1C..., float32; background where no window is.
    """
    shape = [s.stop - s.start for s in box]
    weights, total = image.new_zeros(shape, dtype=torch.float32), torch.empty(0)
    importance = importance.to(image.device)
    for first in range(0, len(windows), batch):
        group = windows[first : first + batch]
        predicted = predict(torch.cat([_cut(image, window) for window in group]))
        if not len(total):
            total = weights.new_zeros(1, predicted.shape[1], *shape)
        for window, logits in zip(group, predicted):
            shared = tuple(slice(max(w.start, b.start), min(w.stop, b.stop)) for w, b in zip(window, box))
            in_box, in_window = _shifted(shared, box), _shifted(shared, window)
            weight = importance[in_window]
            total[(0, slice(None), *in_box)].addcmul_(logits[(slice(None), *in_window)], weight)
            weights[in_box] += weight
    uncovered = weights == 0
    total /= weights.masked_fill_(uncovered, 1.0)  # in place, because the box is large
    for channel, logit in zip(total[0], background_logits(total[..., :1, :1, :1]).flatten().tolist()):
        channel.masked_fill_(uncovered, logit)
    return total


def _shifted(part: Box, whole: Box) -> Box:
    """Return the place of `part` in an array that holds the voxels of `whole`."""
    return tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, whole))


def background_logits(like: torch.Tensor) -> torch.Tensor:
    """Return logits in the shape of `like` (BCXYZ) that say background everywhere."""
    logits = torch.full_like(like, -20.0)
    logits[:, 0] = 0
    return logits


def _cut(image: torch.Tensor, window: Box) -> torch.Tensor:
    """Cut a window out of an image (11XYZ), with zeros beyond its border."""
    inside = tuple(slice(max(0, w.start), min(w.stop, n)) for w, n in zip(window, image.shape[2:]))
    frame = [edge for w, i in zip(window[::-1], inside[::-1]) for edge in (i.start - w.start, w.stop - i.stop)]
    part = image[(..., *inside)]
    return pad(part, frame) if any(frame) else part
