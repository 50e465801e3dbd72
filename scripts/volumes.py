"""Read scans and label maps of every format, and compare their grids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from scripts.errors import UserError

GRID_TOLERANCE_MM = 1e-3  # two affines closer than this are one grid: headers hold float32


class Volume(NamedTuple):
    """A scan as read from disk."""

    data: np.ndarray  # (X, Y, Z)
    affine: np.ndarray  # (4, 4), voxel -> RAS world in mm
    dtype: str  # of the values on disk


def read_volume(path: str | Path) -> Volume:
    """Read a 3-D scan or label map (NIfTI, MetaImage, NRRD or a folder with a DICOM series). The header is checked before the voxels.

    Raises:
        UserError: if it is missing, empty, damaged or not 3-D.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_file() and not path.stat().st_size:
        raise UserError(f"{path}: the file is empty (0 bytes). Export or download it again.")
    try:
        if path.name.lower().endswith((".nii", ".nii.gz")):
            image = nib.load(path)
            shape, affine, dtype = image.shape, image.affine, str(image.get_data_dtype())
            data = np.asanyarray(image.dataobj) if _is_3d(shape) else None
        else:
            from monai.transforms import LoadImage  # here: MONAI takes seconds to import

            image = LoadImage(image_only=True, ensure_channel_first=True, dtype=None)(path)
            shape, affine, data = (*image.shape[1:], image.shape[0]), image.affine.numpy().astype(float), image.numpy()[0]
            dtype = str(data.dtype)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}). Export or download it again.") from None
    if not _is_3d(shape):
        raise UserError(f"{path}: has the shape {tuple(shape)}. Export one 3-D volume.")
    return Volume(data.reshape(shape[:3]), affine, dtype)


def read_grid(path: str | Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a scan; of a NIfTI file the header alone is read.

    Raises:
        UserError: as `read_volume`.
    """
    if str(path).lower().endswith((".nii", ".nii.gz")):
        try:
            image = nib.load(path)
        except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
            image = None  # `read_volume` says what is wrong
        if image is not None and _is_3d(image.shape):
            return image.shape[:3], image.affine
    volume = read_volume(path)
    return volume.data.shape, volume.affine


def _is_3d(shape: Sequence[int]) -> bool:
    return len(shape) >= 3 and min(shape) > 0 and all(n == 1 for n in shape[3:])


def grid_mismatch(shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: np.ndarray) -> str:
    """Why two volumes are not on one grid, in words; empty if they are."""
    if tuple(shape) != tuple(other_shape):
        return f"shape {tuple(shape)} and {tuple(other_shape)}"
    difference = float(np.abs(np.asarray(affine) - np.asarray(other_affine)).max())
    return f"affines that differ by up to {difference:.4g} mm" if not difference <= GRID_TOLERANCE_MM else ""
