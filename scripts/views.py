"""Slices of scans as radiologists expect them: anterior or the patient's right on the left, superior on top, along a curved spine.

Volumes may have any orientation: they are first turned (never resampled) to the nearest axes of RAS, the world with x to the
patient's right, y to the front and z to the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.common.arrays import occupied_box, structure_centres
from scripts.data.volumes import turned_to_ras
from scripts.labels import channels_of, label_table

CURVED_MM = 8.0  # a slice follows the spine if the centres of its bodies spread by this much across it
MARGIN_MM = {"sagittal": 40.0, "coronal": 30.0}  # kept in front of and behind (left and right of) the labels; never cut along the spine


@dataclass(frozen=True)
class View:
    """One slice, ready to be drawn: row 0 is superior; column 0 is anterior (sagittal) or the patient's right (coronal)."""

    plane: str  # "sagittal" or "coronal"
    image: np.ndarray  # (rows, columns)
    label: np.ndarray  # (rows, columns), channel indices
    spacing_mm: tuple[float, float]  # of rows and columns

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of the slice in mm."""
        return self.image.shape[0] * self.spacing_mm[0], self.image.shape[1] * self.spacing_mm[1]


def to_ras(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip and swap the axes of `volume` (X, Y, Z) to the nearest of RAS.

    `affine` is (4, 4), voxel -> RAS world in mm, or holds the three spacings in mm of an array that is in RAS already. Returns the
    turned array and its spacing_mm (3,).
    """
    affine = np.asarray(affine, float)
    if affine.shape == (3,):
        affine = np.diag([*affine, 1.0])
    turned, affine = turned_to_ras(volume, affine)
    return turned, np.linalg.norm(affine[:3, :3], axis=0)


def take_slice(volume: np.ndarray, plane: str, index: int | np.ndarray) -> np.ndarray:
    """Return a slice of a RAS volume as it is drawn: row 0 superior, column 0 anterior (sagittal) or the patient's right (coronal).

    `index` is one for all rows or, for a curved slice, one for each index of the last axis.
    """
    heights = np.arange(volume.shape[2])
    index = np.broadcast_to(index, heights.shape)
    return (volume[index, :, heights] if plane == "sagittal" else volume[:, index, heights].T)[::-1, ::-1]


def spine_path(label: np.ndarray, plane: str, spacing_mm: np.ndarray) -> int | np.ndarray:
    """Return the position of the slice through the spine for each index of the last axis of a RAS label map (channel indices).

    It runs in straight lines through the centres of the bodies, or of the discs where there are fewer than two bodies. A flat slice,
    the `best_index`, is enough if these centres spread by less than `CURVED_MM` across it.
    """
    axis = 0 if plane == "sagittal" else 1
    found = structure_centres(label)
    bodies, discs = (np.array([found[c] for c in channels_of(kind) if c in found]).reshape(-1, 3) for kind in ("body", "disc"))
    centres = bodies if len(bodies) > 1 else discs
    if len(centres) < 2 or np.ptp(centres[:, axis]) * spacing_mm[axis] < CURVED_MM:
        return best_index(label, plane)
    centres = centres[centres[:, 2].argsort()]
    return np.interp(np.arange(label.shape[2]), centres[:, 2], centres[:, axis])


def best_index(label: np.ndarray, plane: str) -> int:
    """Return the index of the slice of a RAS label map (channel indices) with most voxels of bodies, else of any label, else the middle."""
    axis = 0 if plane == "sagittal" else 1
    box = occupied_box(label > 0)
    if not box:
        return label.shape[axis] // 2
    ignored = [False] * 256  # values beyond the table
    for counts in ([s.kind == "body" for s in label_table()], [s.channel > 0 for s in label_table()]):
        area = np.array(counts + ignored)[label[box]].sum(axis=tuple({0, 1, 2} - {axis}))
        if area.any():
            largest = np.flatnonzero(area == area.max())
            return int((box[axis].start + largest.mean()).round())  # the middle one of several equal slices
    return label.shape[axis] // 2


def make_view(image: np.ndarray, label: np.ndarray, spacing_mm: np.ndarray, plane: str, index: int | np.ndarray, columns: slice) -> View:
    """Return the slice of RAS volumes at `index`, see `take_slice`, cut to `columns`.

    Between two slices of a curved path, the image is interpolated linearly, and the label is that of the nearer one.
    """
    low, share = np.floor(index).astype(int), np.asarray(index % 1)
    drawn = take_slice(image, plane, low)
    if share.any():
        weight = np.broadcast_to(share, image.shape[2])[::-1, None]
        above = take_slice(image, plane, np.minimum(low + 1, image.shape[0 if plane == "sagittal" else 1] - 1))
        drawn = (1 - weight) * drawn + weight * above
    marked = take_slice(label, plane, np.round(index).astype(int))
    return View(plane, drawn[:, columns], marked[:, columns], (float(spacing_mm[2]), float(spacing_mm[1 if plane == "sagittal" else 0])))


def crop_columns(label: np.ndarray, plane: str, spacing_mm: np.ndarray) -> slice:
    """Return the columns of the drawn slices that hold the labels plus `MARGIN_MM`; all columns if there are no labels."""
    axis = 1 if plane == "sagittal" else 0
    box = occupied_box(label > 0)
    if not box:
        return slice(None)
    margin, size = int(np.ceil(MARGIN_MM[plane] / spacing_mm[axis])), label.shape[axis]
    return slice(max(0, size - box[axis].stop - margin), min(size, size - box[axis].start + margin))
