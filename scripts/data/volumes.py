"""Read scans and label maps of every format, and compare their grids."""

from __future__ import annotations

import logging
import math
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from scripts.common.errors import EXPORT_AGAIN, ScanError, UserError, read_reason
from scripts.data.dicom import check_series, is_dicom_file, silent_itk
from scripts.data.find import SUFFIXES
from scripts.data.metaimage import check_metaimage

REORDERED = "its axes have another order or direction"
GRID_TOLERANCE_MM = 1e-3  # two grids are one if the entries of their affines differ by no more, as headers hold float32 numbers,
CORNER_TOLERANCE_MM = 0.05  # and no voxel is further from its twin: a small turn moves the far corners most
_alone = threading.Lock()  # loggers and warning filters belong to the whole process
GZIP_RATIO = 1032  # deflate compresses no more than that


class Volume(NamedTuple):
    """A scan as read from disk."""

    data: np.ndarray  # (X, Y, Z)
    affine: np.ndarray  # (4, 4), voxel -> RAS world in mm
    dtype: str  # data type on disk
    notes: tuple[str, ...] = ()  # lines for the user about how it was read
    missing: np.ndarray | None = None  # voxels (X, Y, Z) without a value, which `data` has replaced; None if there is none

    @property
    def signal(self) -> np.ndarray:
        """Return the data with NaN for missing values."""
        return self.data if self.missing is None else np.where(self.missing, np.nan, self.data)


def read_volume(path: str | Path, series: bool = False) -> Volume:
    """Read a 3-D scan or label map (NIfTI, MetaImage, NRRD or a folder with a DICOM series). The header is checked before the voxels.

    Args:
        path: the file or folder.
        series: take the mean over the last axis of a 4-D file, instead of refusing it.

    Raises:
        ScanError: if it is missing, empty, damaged, in colour, not 3-D, or a folder with more than one series or an incomplete one.
    """
    path = Path(path)
    check_there(path)
    if path.is_file() and not path.stat().st_size:
        raise ScanError(path, "the file is empty (0 bytes)", EXPORT_AGAIN)
    try:
        with _notes() as notes:
            read = _read_nifti if path.name.lower().endswith((".nii", ".nii.gz")) else _read_other
            data, affine, dtype = read(path, series, notes)
    except UserError:
        raise
    except Exception as error:
        raise ScanError(path, f"cannot be read ({read_reason(error)})", EXPORT_AGAIN) from None
    return Volume(data, affine, dtype, tuple(notes))


def check_there(path: str | Path) -> None:
    """Refuse a path without a file or folder.

    Raises:
        ScanError: if there is neither.
    """
    if not Path(path).exists():
        what = "a link that leads nowhere" if Path(path).is_symlink() else "no such file"
        raise ScanError(path, what, "Is the path right, and the disk there?")


@contextmanager
def _notes() -> Iterator[list[str]]:
    """Collect the warnings of readers and the repairs of nibabel, which would otherwise go to stderr without the name of the file."""
    notes: list[str] = []
    logger, handler = nib.imageglobals.logger, logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(f"header: {record.getMessage()}")
    with _alone:
        handlers, propagate = logger.handlers, logger.propagate
        logger.handlers, logger.propagate = [handler], False
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                yield notes
        finally:
            logger.handlers, logger.propagate = handlers, propagate
    notes += [" ".join(str(w.message).split()) for w in caught if issubclass(w.category, UserWarning)]


def _read_nifti(path: Path, series: bool, notes: list[str]) -> tuple[np.ndarray, np.ndarray, str]:
    image = nib.load(path)
    dtype = image.get_data_dtype()
    _check_kind(path, image.shape, series, colour=dtype.names is not None or dtype.kind == "c")
    claimed = math.prod(image.shape) * dtype.itemsize
    if claimed > path.stat().st_size * (GZIP_RATIO if path.name.lower().endswith(".gz") else 1):
        shape = " x ".join(str(n) for n in image.shape)  # checked here because nibabel would first allocate all of it
        raise ScanError(path, f"cannot be read (the file is too short for the {shape} voxels of its header)", EXPORT_AGAIN)
    affine, orientation_notes = _affine_of(image)
    notes += orientation_notes
    proxy = image.dataobj
    scaled = (proxy.slope, proxy.inter) != (1, 0)
    if len(image.shape) > 3 and image.shape[3] > 1:
        notes.append(f"a series of {image.shape[3]} volumes: their mean is used")
        data = np.zeros(image.shape[:3], np.float32)
        for i in range(image.shape[3]):
            data += np.asarray(proxy[:, :, :, i], np.float32)
        data /= image.shape[3]
    else:
        # without a type, a scaled volume would be float64
        data = (np.asarray(proxy, np.float32) if scaled else np.asarray(proxy)).reshape(image.shape[:3])
    return data, affine, str(dtype)


def _affine_of(image: nib.Nifti1Image) -> tuple[np.ndarray, list[str]]:
    """Return the affine of a NIfTI file, and a note on which of the two in its header it is if they disagree."""
    sform = image.header.get_sform(coded=True)[0]
    try:
        qform = image.header.get_qform(coded=True)[0]
    except (ValueError, nib.spatialimages.HeaderDataError):
        return image.affine, ["the qform is not valid: the sform is used"]
    if sform is None and qform is None:
        assumed = "right to left, posterior to anterior and inferior to superior are assumed"
        return image.affine, [f"the header says nothing about the orientation (sform_code and qform_code are 0): {assumed}"]
    if sform is None or qform is None:
        return image.affine, []
    if not (np.isfinite(sform).all() and np.linalg.det(sform)):
        return qform, ["the sform is not that of a volume: the qform is used"]
    far = np.abs((sform - qform) @ np.array([*image.shape[:3], 1])).max() if np.isfinite(qform).all() else np.inf
    difference = max(far, np.abs(sform - qform).max())
    return image.affine, [f"sform and qform disagree by up to {difference:.3g} mm: the sform is used"] if difference > 0.1 else []


def _read_other(path: Path, series: bool, notes: list[str]) -> tuple[np.ndarray, np.ndarray, str]:
    from monai.data import ITKReader  # imported late, as MONAI takes seconds
    from monai.transforms import LoadImage

    silent_itk()
    try:
        if path.is_dir():
            check_series(path)
        elif path.name.lower().endswith((".mha", ".mhd")):
            check_metaimage(path)
        # the reader is named because MONAI would use pynrrd where it is installed, which reads fewer files
        image = LoadImage(image_only=True, ensure_channel_first=True, dtype=None)(path, reader=ITKReader())
    except RuntimeError as error:
        if "Could not create IO object" in str(error) and not path.name.lower().endswith(SUFFIXES) and not is_dicom_file(path):
            what = f"its format, {path.suffix}, is not supported" if path.suffix else "its format is not supported"
            raise ScanError(path, what, "Convert it to NIfTI (.nii.gz), with mri_convert of FreeSurfer for example.") from None
        raise ScanError(path, f"cannot be read ({_itk_reason(error)})", EXPORT_AGAIN) from None
    data = image.numpy()
    shape = (*data.shape[1:], *data.shape[:1]) if data.ndim > 3 else data.shape[1:]  # a 2-D image has no slices
    _check_kind(path, shape, series, colour=data.dtype == np.uint8 and len(data) in (3, 4))
    if len(data) > 1:
        notes.append(f"a series of {len(data)} volumes: their mean is used")
        return data.mean(0, dtype=np.float32), image.affine.numpy().astype(float), str(data.dtype)
    return data[0], image.affine.numpy().astype(float), str(data.dtype)


def _itk_reason(error: RuntimeError) -> str:
    """Return the last line of an ITK error, unless it quotes something: a path, or a part of the header, which may be a patient's name."""
    text = str(error).strip()
    if "Could not create IO object" in text:
        return "it is of another format than its name says"
    if "File cannot be read" in text:  # ITK always adds "Reason: No such file or directory"
        return "its voxels are damaged, or not where its header says"
    last = re.sub(r"^\[nrrd\] \w+: *", "", text.splitlines()[-1] if text else type(error).__name__)
    return "its header is damaged, or names a file that is not there" if set('"|') & set(last) else last.rstrip(".:! ")[:160]


def _check_kind(path: Path, shape: Sequence[int], series: bool, colour: bool) -> None:
    """Refuse anything but one 3-D volume in grey values or, with `series`, a series of them.

    Raises:
        ScanError: if the image is in colour or has another shape.
    """
    if colour:
        raise ScanError(path, "in colour, or of complex numbers", "Export it in grey values.")
    extra = [n for n in shape[3:] if n != 1]
    if len(shape) < 3 or min(shape) < 1 or (extra and not (series and len(shape) == 4)):
        raise ScanError(path, f"has the shape {tuple(int(n) for n in shape)}", "Export one 3-D volume.")


def read_grid(path: str | Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Read the shape and affine of a scan, or of one volume of a series; for a NIfTI file only the header is read.

    Raises:
        UserError: as `read_volume`.
    """
    if str(path).lower().endswith((".nii", ".nii.gz")):
        try:
            image = nib.load(path)
        except Exception:  # many kinds: damaged streams, unknown codes
            image = None  # `read_volume` says what is wrong
        if image is not None and len(image.shape) >= 3 and all(n == 1 for n in image.shape[4:]):
            return image.shape[:3], _affine_of(image)[0]
    volume = read_volume(path, series=True)
    return volume.data.shape, volume.affine


def turned_to_ras(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip and swap the axes of a volume (XYZ) to the nearest of RAS; return a view, and its affine (4x4, voxel -> world mm)."""
    orientation = nib.orientations.io_orientation(affine)
    return nib.orientations.apply_orientation(volume, orientation), affine @ nib.orientations.inv_ornt_aff(orientation, volume.shape)


def voxel_mm3(affine: np.ndarray) -> float:
    """Return the volume of a voxel, also if its edges are not at right angles."""
    return float(abs(np.linalg.det(np.asarray(affine, float)[:3, :3])))


def on_grid(path: str | Path, label: Volume, scan_path: str | Path, scan: Volume) -> np.ndarray:
    """Return the data of a label map with the axes in the order of its scan, as a viewer may have saved it with another.

    Raises:
        UserError: if it is not on the grid of its scan, naming both files.
    """
    mismatch = grid_mismatch(scan.data.shape, scan.affine, label.data.shape, label.affine)
    if mismatch not in ("", REORDERED):
        raise UserError(not_on_grid(path, scan_path, mismatch))
    return nib.orientations.apply_orientation(label.data, _to_axes_of(scan.affine, label.affine)) if mismatch else label.data


def not_on_grid(path: str | Path, scan_path: str | Path, mismatch: str) -> str:
    """Return the message, with the fix, on a label map with a `grid_mismatch`."""
    resample, reorder = "Resample it to the scan by nearest neighbour.", "Save it with those of its scan, as nibabel's as_reoriented does."
    return f"{path}: not on the grid of {scan_path} ({mismatch}). {reorder if mismatch == REORDERED else resample}"


def _to_axes_of(affine: np.ndarray, other_affine: np.ndarray) -> np.ndarray:
    """Return the orientation that flips and swaps the axes of the other grid to those of this one."""
    return nib.orientations.ornt_transform(*map(nib.orientations.io_orientation, (other_affine, affine)))


def grid_mismatch(shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: np.ndarray) -> str:
    """Say why two volumes are not on one grid: empty if they are, `REORDERED` if only the order or direction of the axes differs."""
    difference = _difference(shape, affine, other_shape, other_affine)
    if difference:
        try:
            turn = _to_axes_of(affine, other_affine)
        except (ValueError, np.linalg.LinAlgError):  # the affine is not a grid
            return difference
        turned_shape = [other_shape[axis] for axis in np.argsort(turn[:, 0])]
        turned_affine = other_affine @ nib.orientations.inv_ornt_aff(turn, tuple(other_shape))
        if not _difference(shape, affine, turned_shape, turned_affine):
            return REORDERED
    return difference


def _difference(shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: np.ndarray) -> str:
    if tuple(shape) != tuple(other_shape):
        return f"shape {tuple(shape)} and {tuple(other_shape)}"
    apart = np.asarray(affine, float) - np.asarray(other_affine, float)
    corners = np.array([*product(*((0, n - 1) for n in shape))]) @ apart[:3, :3].T + apart[:3, 3]
    entries, far = (float(np.abs(values).max()) for values in (apart, corners))
    if entries <= GRID_TOLERANCE_MM and far <= CORNER_TOLERANCE_MM:
        return ""
    return f"affines that differ by up to {max(entries, far):.4g} mm"
