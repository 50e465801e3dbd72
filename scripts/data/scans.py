"""Check that a scan can be segmented, and note what is doubtful about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.common.errors import ScanError, counted
from scripts.data.dicom import is_dicom_file
from scripts.data.volumes import Volume, read_volume

SPACING_MM = (0.05, 12.0)  # possible edges of a voxel: thicker slices miss half a vertebra, thinner ones are in metres or micrometres
MAX_GAP_MM = 60.0  # largest distance between the slices of a localizer
MAX_VIEW_MM = 2100.0  # longest axis of a view, longer than a body
MAX_VIEW_LITRES = 450.0  # more than the bore of a scanner, and than the working grid may take in memory
CT_AIR = -900.0  # air has -1000 Hounsfield units, magnitude images of MRI have no negative values
MAX_MASK_VALUES = 30  # a mask has one value for every structure, a scan has hundreds
MIN_SLICES = 4  # in fewer slices of a scan that it segments as a whole, the network saw nothing
MIN_WIDTH_MM = 30.0  # from left to right; lumbar bodies are 40 to 50 mm wide
SHEAR_DEG = 1.0  # deviation of two axes from a right angle: more is not rounding but a registration or the tilt of a gantry
SLICE_RATIO = 2.0  # a scan is a stack of slices if they are this many times thicker than the larger edge in plane
MAX_SLICE_MM = 5.0  # thickest slices in training
ROUNDING_MM = 1e-3  # rounding of the float32 numbers in a header
SAMPLE = 10_000  # voxels enough to tell a scan from a mask
CHUNK = 64  # slices checked together, which bounds the memory of the check


def read_scan(path: str | Path) -> Volume:
    """Read a scan that can be segmented: the data are float32, finite and not constant, and notes say what was mended or is doubtful.

    Raises:
        ScanError: as `read_volume`, and for a header without a usable grid or voxels without information.
    """
    volume = read_volume(path, series=True)
    check_grid(path, volume.data.shape, volume.affine)
    data, notes = finite(path, volume.data)
    missing = ~np.isfinite(volume.data) if notes else None
    if (values := few_values(data)) <= MAX_MASK_VALUES:
        notes.append(f"it holds {values} different values only: a mask, no scan?")
    if data.min() <= CT_AIR:
        notes.append(f"it has values down to {data.min():.0f}, as a CT has: the networks know MRI alone")
    if (slices := min(data.shape)) < MIN_SLICES:
        of_series = ". A DICOM series is given by its folder" if slices == 1 and is_dicom_file(Path(path)) else ""
        notes.append(f"{counted(slices, 'slice')} only: the spine is hardly seen in so few{of_series}")
    elif (width_mm := float(np.abs(volume.affine[0, :3]) @ data.shape)) < MIN_WIDTH_MM:
        notes.append(f"it is {width_mm:.3g} mm wide, less than a vertebra: outlines and measures are doubtful")
    notes += shear_notes(volume.affine) + slice_notes(volume.affine)
    return volume._replace(data=data, notes=(*volume.notes, *notes), missing=missing)


def shear_notes(affine: np.ndarray) -> list[str]:
    """Note axes that are not at right angles, which the windows of the network and distances in mm assume."""
    axes = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    off = float(np.rad2deg(np.arcsin(np.abs(np.triu(axes.T @ axes, 1)).max().clip(0, 1))))
    if off > SHEAR_DEG:
        return [f"its axes are {off:.0f} degrees from right angles: distances and outlines are coarse, take the original"]
    return []


def slice_notes(affine: np.ndarray) -> list[str]:
    """Note slices unlike those in training, where the network saw sagittal slices and isotropic voxels."""
    spacing_mm = nib.affines.voxel_sizes(affine)
    axis = int(spacing_mm.argmax())
    plane = ("sagittal", "coronal", "axial")[int(np.abs(affine[:3, axis]).argmax())]
    if plane != "sagittal" and spacing_mm[axis] >= SLICE_RATIO * np.median(spacing_mm) - ROUNDING_MM:
        return [f"{plane} slices of {spacing_mm[axis]:.2g} mm: outlines and measures are coarse, take a sagittal series where there is one"]
    if spacing_mm[axis] > MAX_SLICE_MM + ROUNDING_MM:
        return [f"slices of {spacing_mm[axis]:.2g} mm, thicker than any in training: outlines and measures are coarse"]
    return []


def few_values(data: np.ndarray) -> int:
    """Count the different values, or only those in a sample if they are already more than a mask has."""
    sample = len(np.unique(data.ravel(order="K")[:: max(1, data.size // SAMPLE)]))
    return sample if sample > MAX_MASK_VALUES else len(np.unique(data))


def check_grid(path: str | Path, shape: Sequence[int], affine: np.ndarray) -> None:
    """Refuse an affine (voxel -> mm) that no MRI scanner makes.

    Raises:
        ScanError: if it is not a grid in space, or if the voxels or the view have an impossible size.
    """
    again = "Export it again from the original images."
    if not np.isfinite(affine).all():
        raise ScanError(path, "the orientation in its header (affine) holds NaN or infinite numbers", again)
    spacing_mm = nib.affines.voxel_sizes(affine)
    spacing = " x ".join(f"{s:.4g}" for s in spacing_mm)
    if min(spacing_mm) <= 0 or abs(np.linalg.det(affine[:3, :3])) < 1e-3 * np.prod(spacing_mm):
        raise ScanError(path, f"the orientation in its header (affine) is not that of a volume, its voxels measure {spacing} mm", again)
    if min(spacing_mm) < SPACING_MM[0] or max(spacing_mm) > SPACING_MM[1]:
        limits = "{} to {}".format(*SPACING_MM)
        is_localizer = min(spacing_mm) >= SPACING_MM[0] and max(spacing_mm) <= MAX_GAP_MM
        fix = "Take a series of thinner slices: is it a localizer?" if is_localizer else "Is the unit mm? " + again
        raise ScanError(path, f"its voxels measure {spacing} mm, and {limits} mm are possible", fix)
    view_mm = spacing_mm * shape
    if max(view_mm) > MAX_VIEW_MM or np.prod(view_mm) > MAX_VIEW_LITRES * 1e6:
        view = " x ".join(f"{v:.0f}" for v in view_mm)
        raise ScanError(path, f"its view of {view} mm is larger than a body", "Is the voxel size in its header right? " + again)


def finite(path: str | Path, data: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the data as float32, with NaN and infinite voxels replaced by the lowest finite value, and notes on that.

    Raises:
        ScanError: if no voxel is finite, or all have the same value.
    """
    result = np.array(data, np.float32, order="K")
    in_memory = result.transpose(np.argsort(result.strides)[::-1])  # slabs are then contiguous, whatever the order of the axes
    slabs = [in_memory[i : i + CHUNK] for i in range(0, len(in_memory), CHUNK)]
    good = [np.isfinite(slab) for slab in slabs]
    missing = result.size - sum(int(g.sum()) for g in good)
    if missing == result.size:
        raise ScanError(path, "no voxel holds a finite number", "Export or download it again.")
    # an infinite value would be the minimum or the maximum, so they are taken of the finite ones if there are others
    values = [slab[g] if missing else slab for slab, g in zip(slabs, good) if g.any()]
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if low == high:
        raise ScanError(path, f"every voxel has the value {low:g}", "Export or download it again.")
    if not missing:
        return result, []
    for slab, g in zip(slabs, good):
        slab[~g] = low
    share = 100 * missing / result.size
    return result, [f"{missing} voxels ({share:.2g} %) were NaN or infinite: taken for the lowest value, and left out of signals"]
