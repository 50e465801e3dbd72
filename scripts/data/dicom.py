"""Whether the files of a DICOM series make up a volume: a reader takes what is there, and stretches it over what is not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scripts.common.errors import ScanError

UNEVEN = 0.1  # of the usual distance between slices: more is no rounding
POSITION, ORIENTATION = "0020|0032", "0020|0037"  # ImagePositionPatient, ImageOrientationPatient
EXPORT_SERIES = "Export the whole series again."


def check_series(folder: str | Path) -> None:
    """
    Args:
        folder: with the files of one series, one per slice; more than one series, or all slices in one file, pass.

    Raises:
        ScanError: if a file cannot be read, or the slices do not say where they lie, lie there twice or not equally far apart.
    """
    import itk  # here: it takes a second to import

    itk.Object.SetGlobalWarningDisplay(False)  # its C++ text names no file
    series = itk.GDCMSeriesFileNames.New()
    series.SetUseSeriesDetails(True)
    series.AddSeriesRestriction("0008|0021")  # as MONAI reads it
    series.SetDirectory(str(folder))
    files = [list(series.GetFileNames(uid)) for uid in series.GetSeriesUIDs()]
    known = {os.path.basename(name) for names in files for name in names}
    damaged = sorted(p.name for p in Path(folder).iterdir() if p.name not in known and is_dicom_file(p))
    if known and damaged:
        raise ScanError(folder, f"a file of the series cannot be read: {', '.join(damaged[:5])}", EXPORT_SERIES)
    if len(files) == 1 and len(files[0]) > 1:
        _check_positions(folder, [_position_mm(folder, name) for name in files[0]])


def is_dicom_file(path: Path) -> bool:
    """`DICM` after the 128-byte preamble; an index of a disc (DICOMDIR) holds no image.

    Raises:
        PermissionError: if it cannot be seen.
    """
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(132)[128:] == b"DICM"


def _position_mm(folder: str | Path, file: str) -> float:
    """Where a slice lies along the normal of its plane."""
    import itk

    image = itk.GDCMImageIO.New(FileName=file)
    image.ReadImageInformation()
    if not all(image.GetMetaDataDictionary().HasKey(key) for key in (POSITION, ORIENTATION)):
        reason = f"{Path(file).name} does not say where its slice lies (ImagePositionPatient, ImageOrientationPatient)"
        raise ScanError(folder, reason, "Export the original images, not copies or screenshots of them.")
    return float(np.cross(image.GetDirection(0), image.GetDirection(1)) @ [image.GetOrigin(axis) for axis in range(3)])


def _check_positions(folder: str | Path, positions_mm: Sequence[float]) -> None:
    positions = np.sort(positions_mm)
    steps = np.diff(positions)
    usual = float(np.median(steps))
    if min(steps) < UNEVEN * usual or usual < 1e-3:
        raise ScanError(folder, "several of its images lie at one place", "Export each volume of the series into a folder of its own.")
    wrong = np.flatnonzero(np.abs(steps - usual) > UNEVEN * usual)
    if len(wrong):
        where = ", ".join(f"{steps[i]:.4g} mm between {positions[i]:.4g} and {positions[i + 1]:.4g} mm" for i in wrong[:3])
        reason = f"its {len(positions)} slices are {usual:.4g} mm apart, but {where}: slices are missing"
        raise ScanError(folder, reason, EXPORT_SERIES)
