"""Windows of a sliding-window inference that follow the spine, where MONAI's cover a box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import pad

from scripts.common.arrays import occupied_box

Box = tuple[slice, ...]  # voxels of an image, one slice per axis


def box_around(seen: torch.Tensor, margin: Sequence[int]) -> Box:
    """The smallest box that holds what is true (XYZ, not all false), and a margin in voxels, clipped to the map."""
    box = occupied_box(seen.cpu().numpy())
    return tuple(slice(max(0, s.start - m), min(s.stop + m, n)) for s, m, n in zip(box, margin, seen.shape))


def scaled(box: Box, voxel: Sequence[int]) -> Box:
    """A box of coarse voxels in fine ones."""
    return tuple(slice(s.start * v, s.stop * v) for s, v in zip(box, voxel))


def spine_windows(
    seen: torch.Tensor, voxel: Sequence[int], margin: Sequence[int], shape: Sequence[int], roi_size: Sequence[int], overlap: float
) -> list[Box]:
    """Windows that cover every coarse voxel that is seen, and a margin around it.

    The last axis, along the spine, is divided into slabs, and every slab has a box of its own: a spine is curved, and a grid of windows
    over the box around all of it is half empty.

    Args:
        seen: where the spine is, boolean, coarse XYZ, not all false.
        voxel: size of a coarse voxel in fine ones.
        margin: in coarse voxels.
        shape: of the image in fine voxels.
        roi_size: of a window.
        overlap: share of a window that its neighbour covers too, at least.

    Returns:
        boxes of `roi_size` in fine voxels; where the image is smaller than that, they reach beyond it on both sides.
    """
    along = scaled(box_around(seen, margin), voxel)[2]
    beyond = max(0, margin[2] - int(overlap * roi_size[2]) // voxel[2])  # of a slab: margins that its neighbours do not reach
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
    """First voxels of windows of `size` that cover `part` of an axis of `end` voxels, evenly spread, within the axis where they fit."""
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
    """What `predict` makes of windows of an image, blended in a box of it.

    Args:
        image: 11XYZ.
        windows: as of `spine_windows`; beyond the image they are padded with 0.
        box: within the image; parts of windows outside it are dropped.
        predict: batch of windows (B1...) -> logits (BC...), of which the first are the background's.
        importance: weight of the voxels of a window, of its shape, positive.
        batch: windows at a time.

    Returns:
        the weighted mean, 1C..., float32; background where no window is.
    """
    shape = [s.stop - s.start for s in box]
    weights, total = image.new_zeros(shape, dtype=torch.float32), torch.empty(0)
    importance = importance.to(image.device)
    for first in range(0, len(windows), batch):
        some = windows[first : first + batch]
        drawn = predict(torch.cat([_cut(image, window) for window in some]))
        if not len(total):
            total = weights.new_zeros(1, drawn.shape[1], *shape)
        for window, logits in zip(some, drawn):
            both = [(max(w.start, b.start), min(w.stop, b.stop)) for w, b in zip(window, box)]
            of_box, of_window = (tuple(slice(a - s.start, z - s.start) for (a, z), s in zip(both, place)) for place in (box, window))
            weight = importance[of_window]
            total[(0, slice(None), *of_box)].addcmul_(logits[(slice(None), *of_window)], weight)
            weights[of_box] += weight
    bare = weights == 0
    total /= weights.masked_fill_(bare, 1.0)  # in place: the box is large
    for channel, logit in zip(total[0], background_logits(total[..., :1, :1, :1]).flatten().tolist()):
        channel.masked_fill_(bare, logit)
    return total


def background_logits(like: torch.Tensor) -> torch.Tensor:
    """Logits of the shape of `like` (BCXYZ) that say background everywhere."""
    logits = torch.full_like(like, -20.0)
    logits[:, 0] = 0
    return logits


def _cut(image: torch.Tensor, window: Box) -> torch.Tensor:
    """The window of an image (11XYZ), with zeros beyond it."""
    inside = tuple(slice(max(0, w.start), min(w.stop, n)) for w, n in zip(window, image.shape[2:]))
    frame = [edge for w, i in zip(window[::-1], inside[::-1]) for edge in (i.start - w.start, w.stop - i.stop)]
    part = image[(..., *inside)]
    return pad(part, frame) if any(frame) else part
