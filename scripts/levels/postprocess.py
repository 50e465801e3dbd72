"""Clean a label map: one connected instance per level, no specks, no holes. All sizes are in mm3, independent of the voxel size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from scripts.common.arrays import occupied_box, structure_boxes
from scripts.labels import label_table


def clean_label_map(
    label: np.ndarray, spacing_mm: Sequence[float], min_instance_mm3: float = 300.0, min_speck_mm3: float = 20.0
) -> np.ndarray:
    """Return a label map with one face-connected piece per channel and no holes inside; the input is not changed.

    1. The largest piece of every channel is its instance, unless it is smaller than `min_instance_mm3`.
    2. Any other piece joins the instance of the same kind (body or disc) that it touches most, as part of a body that was given the
       wrong level. A piece that touches none, or is smaller than `min_speck_mm3`, becomes background.
    3. Background enclosed by an instance is filled.

    Args:
        label: channel indices, shape XYZ.
        spacing_mm: voxel size.
        min_instance_mm3: the smallest volume of a level; a lumbar body has about 30,000 mm3, a flat disc cut by the view some 1,000.
        min_speck_mm3: smaller loose pieces are dropped, not joined.
    """
    result = np.zeros_like(label)
    if box := occupied_box(label > 0):
        result[box] = _clean(label[box], float(np.prod(spacing_mm)), min_instance_mm3, min_speck_mm3)
    return result


def _clean(label: np.ndarray, voxel_mm3: float, min_instance_mm3: float, min_speck_mm3: float) -> np.ndarray:
    kinds = np.array([s.kind for s in label_table()])
    instances = np.zeros_like(label)
    loose = np.zeros(label.shape, np.int32)  # numbers of the pieces that are not an instance
    channel_of_piece = [0]
    for channel, box in structure_boxes(label).items():
        pieces, count = ndimage.label(label[box] == channel)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:] * voxel_mm3
        is_instance = (np.arange(count) == sizes.argmax()) & (sizes >= min_instance_mm3)
        instances[box][np.append(False, is_instance)[pieces]] = channel
        is_loose = ~is_instance & (sizes >= min_speck_mm3)
        numbers = np.append(0, np.where(is_loose, len(channel_of_piece) - 1 + is_loose.cumsum(), 0)).astype(np.int32)
        loose[box] += numbers[pieces]
        channel_of_piece += [channel] * int(is_loose.sum())

    contacts = _contacts(loose, len(channel_of_piece), instances, len(kinds))
    contacts[kinds[channel_of_piece][:, None] != kinds] = 0
    joined = np.where(contacts.any(1), contacts.argmax(1), 0).astype(label.dtype)
    result = np.where(loose > 0, joined[loose], instances)
    for channel, box in structure_boxes(result).items():
        inside = ndimage.binary_fill_holes(result[box] == channel)
        result[box][inside & (result[box] == 0)] = channel
    return result


def _contacts(pieces: np.ndarray, n_pieces: int, instances: np.ndarray, n_channels: int) -> np.ndarray:
    """Count the voxel faces between every piece and every instance, shape (n_pieces, n_channels)."""
    counts = np.zeros(n_pieces * n_channels, np.int64)
    for axis in range(pieces.ndim):
        low = tuple(slice(None, -1) if i == axis else slice(None) for i in range(pieces.ndim))
        high = tuple(slice(1, None) if i == axis else slice(None) for i in range(pieces.ndim))
        for a, b in ((low, high), (high, low)):
            touching = (pieces[a] > 0) & (instances[b] > 0)
            counts += np.bincount(pieces[a][touching] * n_channels + instances[b][touching], minlength=len(counts))
    return counts.reshape(n_pieces, n_channels)
