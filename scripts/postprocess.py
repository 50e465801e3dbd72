"""Clean a label map: one connected instance per level, no specks, no holes. Sizes in mm3, whatever the voxel size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from scripts.labels import label_table


def clean_label_map(
    label: np.ndarray, spacing_mm: Sequence[float], min_instance_mm3: float = 300.0, min_speck_mm3: float = 20.0
) -> np.ndarray:
    """Label map with one face-connected piece per channel and no holes inside; the input is not changed.

    1. The largest piece of every channel is its instance; one below `min_instance_mm3` is no instance at all.
    2. Any other piece joins the instance of the same group (body or disc) that it touches most: a piece of a body that was given the
       wrong level. A piece that touches none, or is smaller than `min_speck_mm3`, becomes background.
    3. Background enclosed by an instance is filled.

    Args:
        label: channel indices, shape XYZ.
        spacing_mm: voxel size.
        min_instance_mm3: the smallest volume of a level; a lumbar body has about 30,000 mm3, a flat disc cut by the view some 1,000.
        min_speck_mm3: smaller loose pieces are dropped, not joined.
    """
    voxel_mm3 = float(np.prod(spacing_mm))
    groups = [s.group for s in label_table()]
    result = np.zeros_like(label)
    loose: list[tuple[str, tuple[slice, ...], np.ndarray]] = []  # (group, bounding box, mask in the box)
    for channel, box in enumerate(ndimage.find_objects(label, max_label=len(groups) - 1), start=1):
        if box is None:
            continue
        pieces, _ = ndimage.label(label[box] == channel)
        sizes = np.bincount(pieces.ravel())[1:] * voxel_mm3
        main = int(sizes.argmax())
        for i, piece_box in enumerate(ndimage.find_objects(pieces)):
            piece = pieces[piece_box] == i + 1
            where = tuple(slice(b.start + p.start, b.start + p.stop) for b, p in zip(box, piece_box))
            if i == main and sizes[i] >= min_instance_mm3:
                result[where][piece] = channel
            elif sizes[i] >= min_speck_mm3:
                loose.append((groups[channel], where, piece))
    instances = result.copy()  # pieces join instances, not each other, so that their order does not matter
    for group, box, piece in loose:
        joined = _most_touched(instances, group, box, piece, groups)
        if joined:
            result[box][piece] = joined
    for channel, box in enumerate(ndimage.find_objects(result, max_label=len(groups) - 1), start=1):
        if box is not None:
            inside = ndimage.binary_fill_holes(result[box] == channel)
            result[box][inside & (result[box] == 0)] = channel
    return result


def _most_touched(instances: np.ndarray, group: str, box: tuple[slice, ...], piece: np.ndarray, groups: Sequence[str]) -> int:
    """Channel of the instance of `group` that shares most voxel faces with the piece, 0 if none does."""
    grown = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
    around = instances[grown]
    pad = [(s.start - g.start, n - (s.start - g.start) - p) for s, g, n, p in zip(box, grown, around.shape, piece.shape)]
    mask = np.pad(piece, pad)
    contacts = np.bincount(around[ndimage.binary_dilation(mask) & ~mask], minlength=len(groups))
    contacts[[g != group for g in groups]] = 0
    return int(contacts.argmax()) if contacts.any() else 0
