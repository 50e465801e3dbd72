"""Series whose files do not make up a volume are refused; others pass."""

from __future__ import annotations

from pathlib import Path

import itk
import numpy as np
import pytest
from conftest import fails

from scripts.data.volumes import read_volume

AGAIN = "Export the whole series again."


def write_series(folder: Path, places_mm: list[float]) -> Path:
    """One file per sagittal slice of 4 x 5 pixels, at these places from right to left."""
    folder.mkdir()
    for i, place in enumerate(places_mm):
        image = itk.image_from_array(np.full((5, 4), 100 + i, np.int16))
        tags = {"0008|0060": "MR", "0020|000e": "1.2.3", "0020|000d": "1.2", "0020|0013": str(i)}
        tags |= {"0020|0032": f"{place}\\0\\0", "0020|0037": r"0\1\0\0\0\-1"}
        for key, value in tags.items():
            image.GetMetaDataDictionary()[key] = value
        writer = itk.ImageFileWriter.New(image, FileName=str(folder / f"{i}.dcm"), ImageIO=itk.GDCMImageIO.New(KeepOriginalUID=True))
        writer.SetUseInputMetaDataDictionary(True)
        writer.Update()
    return folder


def test_whole_series(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5, 10.2, 15, 20])  # scanners round
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "note.txt").write_text("x")
    volume = read_volume(folder)
    assert sorted(volume.data.shape) == [4, 5, 5]
    assert volume.notes == ()


def test_missing_slices(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5, 10, 25, 30])
    with fails(f"{folder}: its 5 slices are 5 mm apart, but 15 mm between -25 and -10 mm: slices are missing. {AGAIN}"):
        read_volume(folder)


def test_a_damaged_file(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5, 10, 15])
    content = (folder / "3.dcm").read_bytes()
    (folder / "3.dcm").write_bytes(content[:200])
    with fails(f"{folder}: a file of the series cannot be read: 3.dcm. {AGAIN}"):
        read_volume(folder)


def test_two_images_of_a_slice(tmp_path):
    folder = write_series(tmp_path / "a", [0, 0, 5, 5, 10, 10])
    with fails(f"{folder}: several of its images lie at one place. Export each volume of the series into a folder of its own."):
        read_volume(folder)


def test_no_positions(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5, 10])
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\x20\x00\x32\x00", b"\x20\x00\x31\x00"))  # another tag
    with pytest.raises(SystemExit, match=r"\d.dcm does not say where its slice lies \(ImagePositionPatient, ImageOrientationPatient\)"):
        read_volume(folder)
