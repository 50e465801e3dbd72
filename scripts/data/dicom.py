"""Check that the files of a DICOM series make up a volume: a reader takes what is there and stretches it over missing slices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from scripts.common.errors import ScanError, listed

UNEVEN = 0.1  # share of the usual distance between slices; larger deviations are not due to rounding
PARALLEL = 0.02  # distance between the unit normals of parallel slices at most, about a degree
MODALITY, DESCRIPTION = "0008|0060", "0008|103e"  # Modality, SeriesDescription
POSITION, ORIENTATION = "0020|0032", "0020|0037"  # ImagePositionPatient, ImageOrientationPatient
OTHER_MODALITIES = {"CT", "PT", "NM", "US", "CR", "DX", "DR", "RF", "XA", "MG"}  # that a scan of a spine may have
SHOWN_SERIES = 5  # descriptions of series in a message
CLASS = b"\x02\x00\x02\x00UI"  # MediaStorageSOPClassUID; its length (two bytes) and its text follow
MAGIC = 132  # bytes of the preamble: 128 of any kind, often zeros, and `DICM`
EXPORT_SERIES = "Export the whole series again."


def check_series(folder: str | Path) -> None:
    """Refuse a folder whose DICOM series is not a complete volume.

    Args:
        folder: folder with the files of one series, one per slice, or with all slices in one file.

    Raises:
        ScanError: if there is no series, more than one, or one of `OTHER_MODALITIES`, if a file of it cannot be read, or if the
            slices lack a position, are not parallel, lie at the same place or are not equally far apart.
    """
    if dead := [path.name for path in Path(folder).iterdir() if not path.exists()]:  # GDCM would then drop other files too
        raise ScanError(folder, f"a link that leads nowhere, {_some(dead)}", "Remove it, or bring back the file.")
    series = _list_series(folder)
    if damaged := _unreadable(folder, [Path(file) for files in series for file in files]):
        raise ScanError(folder, f"no slice can be read from {_some(damaged)}, cut off or without an image", EXPORT_SERIES)
    if not series:
        fix = "Name a file or the folder of a series; --dataset_dir takes a folder of scans."
        raise ScanError(folder, "a folder without a DICOM series", fix)
    if (modality := _tag(series[0][0], MODALITY)) in OTHER_MODALITIES:
        raise ScanError(folder, f"its modality is {modality}: the networks know MRI alone", "Take an MR series.")
    if len(series) > 1:
        words = [_tag(files[0], DESCRIPTION) or "without a description" for files in series]
        fix = "Convert the folder with dcm2niix, or move each series into a folder of its own."
        raise ScanError(folder, f"holds {len(series)} DICOM series ({listed(words, SHOWN_SERIES)})", fix)
    if len(series[0]) > 1:
        _check_places(folder, series[0])


def is_dicom_file(path: Path) -> bool:
    """Return True for a file with `DICM` after the 128-byte preamble, but not for the index of a disc (DICOMDIR), which holds no image.

    Raises:
        PermissionError: if the file cannot be read.
    """
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    return _head(path)[128:MAGIC] == b"DICM"


def holds_series(folder: str | Path) -> bool:
    """Return True if GDCM finds a series, even of files without the preamble that `is_dicom_file` needs. Slow: it reads all files."""
    return bool(_list_series(folder))


def silent_itk() -> ModuleType:
    """Return the module `itk` without its warnings, which would go to stderr with lines of its source and without the name of the file."""
    import itk  # imported late, as it takes a second

    itk.Object.SetGlobalWarningDisplay(False)
    return itk


def _list_series(folder: str | Path) -> list[list[str]]:
    """List the files of each series, in the order of the slices, as MONAI's reader does."""
    names = silent_itk().GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)
    names.AddSeriesRestriction("0008|0021")
    names.SetDirectory(str(folder))
    return [list(names.GetFileNames(uid)) for uid in names.GetSeriesUIDs()]


def _unreadable(folder: str | Path, known: Sequence[Path]) -> list[str]:
    """Return the names of files that look like slices but are not among the known ones, because GDCM has left them out.

    Reports and other objects of another class may lie beside the slices. Files that have lost their beginning are recognised by suffix.
    """
    names, suffixes = {path.name for path in known}, {path.suffix for path in known}
    classes = {_class(path) for path in known}
    damaged = []
    for path in sorted(Path(folder).iterdir()):
        if path.name.startswith(".") or path.name in names:
            continue
        if is_dicom_file(path):
            is_slice = not known or _class(path) in {*classes, b""}
        elif path.suffix in suffixes:
            is_slice = path.is_file() and not _head(path)[:MAGIC].strip(b"\0")
        else:
            is_slice = False
        if is_slice:
            damaged.append(path.name)
    return damaged


def _head(path: Path) -> bytes:
    with path.open("rb") as handle:
        return handle.read(1024)


def _class(path: Path) -> bytes:
    """Return the UID of the class of object in a file; empty if the file ends before it."""
    _, _, rest = _head(path).partition(CLASS)
    return rest[2 : 2 + int.from_bytes(rest[:2], "little")].rstrip(b"\0 ")


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tag(file: str, key: str) -> str:
    """Return the value of a DICOM tag of a file; empty if it has none."""
    try:
        return _tag_of(_header(file), key)
    except RuntimeError:  # no image: a report, for example
        return ""


def _header(file: str) -> Any:
    """Read the header of a file as ITK does."""
    image = silent_itk().GDCMImageIO.New(FileName=file)
    image.ReadImageInformation()
    return image


def _tag_of(image: Any, key: str) -> str:
    """Return the value of a tag of a header, which has to live as long as its tags are read; empty if it has none."""
    tags = image.GetMetaDataDictionary()
    return tags[key].strip() if tags.HasKey(key) else ""


def _check_places(folder: str | Path, files: Sequence[str]) -> None:
    """Refuse slices that lack a position, are not parallel, or lie at the same place or not equally far apart.

    Args:
        folder: folder for the message.
        files: files, one per slice.

    Raises:
        ScanError: as `check_series`.
    """
    places = {Path(file).name: _place(file) for file in files}
    if nowhere := [name for name, place in places.items() if place is None]:
        reason = f"where the slice lies (ImagePositionPatient, ImageOrientationPatient) is missing in {_some(nowhere)}"
        raise ScanError(folder, reason, "Export the original images, not copies or screenshots of them.")
    names = list(places)
    normals, origins_mm = (np.array(values) for values in zip(*places.values()))
    if (np.linalg.norm(normals - normals[0], axis=1) > PARALLEL).any():
        raise ScanError(folder, "its slices are not parallel", "Move those of each direction into a folder of its own.")
    order = np.argsort(origins_mm @ normals[0], kind="stable")
    moves_mm = np.diff(origins_mm[order], axis=0)
    steps_mm = moves_mm @ normals[0]
    if min(steps_mm) < max(UNEVEN * np.median(steps_mm), 1e-3):
        first = int(np.argmin(steps_mm))
        twins = _some(names[i] for i in order[first : first + 2])
        raise ScanError(folder, f"two images at one place, {twins}", "Keep one, or move each volume into a folder of its own.")
    _check_steps(folder, np.sort(origins_mm @ normals[0]), moves_mm - steps_mm[:, None] * normals[0])


def _check_steps(folder: str | Path, places_mm: np.ndarray, sideways_mm: np.ndarray) -> None:
    """Refuse a stack of slices with gaps, or with slices that are shifted sideways.

    Args:
        folder: folder for the message.
        places_mm: positions along the normal, in order, (N,).
        sideways_mm: shift of each slice within its plane relative to the one before, (N - 1, 3).

    Raises:
        ScanError: for gaps, and for a stack that is not upright, which ITK would take for one of other slices.
    """
    steps_mm = np.diff(places_mm)
    usual = float(np.sort(steps_mm)[(len(steps_mm) - 1) // 2])  # the lower median, because missing slices make steps longer
    wrong = np.flatnonzero(np.abs(steps_mm - usual) > UNEVEN * usual)
    if len(wrong):
        where = ", ".join(f"{steps_mm[i]:.4g} mm between {places_mm[i]:.4g} and {places_mm[i + 1]:.4g} mm" for i in wrong[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        reason = f"its {len(places_mm)} slices are {usual:.4g} mm apart, but {where}{more}: slices are missing"
        raise ScanError(folder, reason, EXPORT_SERIES)
    shift = float(np.linalg.norm(sideways_mm, axis=1).max())
    if shift > UNEVEN * usual:
        reason = f"its slices are {usual:.4g} mm apart, and shifted sideways by up to {shift:.4g} mm from one to the next"
        raise ScanError(folder, reason, "Convert them with a tool that straightens such stacks, and segment its NIfTI file.")


def _place(file: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Read the normal (a unit vector) and the origin (mm) of a slice, LPS, as ITK does; None if the file lacks them."""
    image = _header(file)
    if not all(_tag_of(image, key) for key in (POSITION, ORIENTATION)):
        return None
    return np.cross(image.GetDirection(0), image.GetDirection(1)), np.array([image.GetOrigin(axis) for axis in range(3)])
