"""Find an unlabelled S1 below a labelled L5, with a network that only knows the vertebrae above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage

from scripts.common.arrays import occupied_box
from scripts.data.resampling import sample_affine
from scripts.labels import label_table, structure
from scripts.levels.instances import CORE_DEPTH_MM, find_instances
from scripts.network import KINDS

TILTS_DEG = (10.0, 20.0, 30.0, 40.0)  # tilts of the patch against the line from L4 to L5, because S1 lies further back
PATCH = (64, 96, 96)  # voxels of 1 mm, the working grid of the shipped weights; multiples of 16
AHEAD_MM = 22.0  # from the centre of L5 to the centre of the patch; half of it from the disc L5/S1
DISTANCE_MM = (12.0, 55.0)  # bounds of the distance from the centre of L5 to that of S1, along the line from L4
MIN_BODY_PROBABILITY = 0.4  # mean over the tilts: below 0.5, because only some of the tilts may see the body
MIN_VOLUME_RATIO = 0.15  # volume relative to L5 (or the disc L5/S1): less of S1 is not worth a label
MIN_SOLIDITY = 0.9  # share of its closing that a body fills at least
CLOSING_MM = 6.0  # half width of that closing


def find_sacrum(
    image: torch.Tensor, label: np.ndarray, spacing_mm: Sequence[float], delineate: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray | None:
    """Find the voxels of S1, boolean, shape XYZ; None if the label lacks its neighbours or no S1 is seen.

    A network trained on scans without a labelled sacrum draws S1 only in part, because no vertebra above it is so tilted and wedged.
    Turned upright, S1 looks like any other body and is drawn like one; the probabilities of several tilts are averaged.

    Args:
        image: preprocessed, shape 1XYZ, in RAS order.
        label: channel indices, shape XYZ; L4 and L5, or the discs L4/L5 and L5/S1, tell where S1 lies.
        spacing_mm: voxel size.
        delineate: function from patches (B1XYZ) to kind logits (B3XYZ).
    """
    pairs = [("L4", "L5", 1.0), ("L4/L5", "L5/S1", 0.5)]  # neighbours of S1, and what counts of a distance from L5
    there = {s.name for s in label_table() if (label == s.channel).any()}
    pair = next((p for p in pairs if there.issuperset(p[:2])), None)
    if pair is None:
        return None
    upper, lower, share = pair
    spacing = np.array(spacing_mm)
    above, last = (np.argwhere(label == structure(name).channel).mean(0) * spacing for name in (upper, lower))
    down = (last - above) / np.linalg.norm(last - above)
    centre = last + AHEAD_MM * share * down
    kinds = sum(_upright(image, centre, down, tilt, spacing, delineate) for tilt in TILTS_DEG) / len(TILTS_DEG)
    body = (kinds[KINDS.index("body")] > MIN_BODY_PROBABILITY) & ~ndimage.binary_dilation(label > 0)
    least_mm3 = MIN_VOLUME_RATIO * (label == structure(lower).channel).sum() * spacing.prod()
    numbers, instances = find_instances(body, spacing_mm, least_mm3, CORE_DEPTH_MM)
    near = [i for i in instances if DISTANCE_MM[0] * share < (i.centre_mm - last) @ down < DISTANCE_MM[1]]
    if not near:
        return None
    sacrum = ndimage.binary_fill_holes(numbers == max(near, key=lambda i: i.volume_mm3).number)
    return sacrum if _solidity(sacrum, spacing) > MIN_SOLIDITY else None


def _solidity(mask: np.ndarray, spacing: np.ndarray) -> float:
    """Return the share of its morphological closing that a mask fills."""
    size = (2 * np.rint(CLOSING_MM / spacing) + 1).astype(int)
    box = np.pad(mask[occupied_box(mask)], [(n, n) for n in size])
    return float(box.sum() / ndimage.grey_closing(box.astype(np.uint8), size).sum())


def _upright(
    image: torch.Tensor, centre_mm: np.ndarray, down: np.ndarray, tilt_deg: float, spacing: np.ndarray, delineate: Callable
) -> np.ndarray:
    """Return kind probabilities (3XYZ, 0 outside the patch) of a patch whose last axis is `down` turned backwards by `tilt_deg`."""
    angle = np.arctan2(-down[1], -down[2]) + np.deg2rad(tilt_deg)  # from superior towards anterior, of the upward axis of the patch
    turn = np.array([[1, 0, 0], [0, np.cos(angle), np.sin(angle)], [0, -np.sin(angle), np.cos(angle)]])
    matrix, centre = np.diag(1 / spacing) @ turn, centre_mm / spacing
    patch = sample_affine(image, centre, matrix, np.array(PATCH), "bilinear")
    with torch.no_grad():
        kinds = delineate(patch[None])[0].float().softmax(0)
    back = np.linalg.inv(matrix)
    shape = np.array(image.shape[1:])
    middle = back @ ((shape - 1) / 2 - centre) + (np.array(PATCH) - 1) / 2
    return sample_affine(kinds, middle, back, shape, "bilinear").numpy()
