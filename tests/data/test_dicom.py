"""Series whose files do not make up a volume are refused; others pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import itk
import numpy as np
import pytest
from conftest import fails

from scripts.common.errors import UserError
from scripts.data.dicom import CLASS
from scripts.data.volumes import read_volume

AGAIN = "Export the whole series again."
MR = "1.2.840.10008.5.1.4.1.1.4"
SAGITTAL, AXIAL = r"0\1\0\0\0\-1", r"1\0\0\0\1\0"
PLACE, DIRECTION = b"\x20\x00\x32\x00", b"\x20\x00\x37\x00"  # tags in a file


def write_series(
    folder: Path,
    places_mm: Sequence[float],
    sideways_mm: float = 0.0,
    directions: Sequence[str] = (SAGITTAL,),
    uid: str = "1.2.3",
    description: str = "",
    modality: str = "MR",
) -> Path:
    """One file per slice of 4 x 5 pixels, at these places from right to left, `sideways_mm` from one to the next, directions in turn."""
    folder.mkdir()
    for i, place in enumerate(places_mm):
        image = itk.image_from_array(np.full((5, 4), 100 + i, np.int16))
        tags = {"0008|0016": MR, "0008|0060": modality, "0020|000e": uid, "0008|103e": description, "0020|000d": "1.2", "0020|0013": str(i)}
        tags |= {"0020|0032": f"{place}\\{i * sideways_mm}\\0", "0020|0037": directions[i % len(directions)]}
        for key, value in tags.items():
            image.GetMetaDataDictionary()[key] = value
        writer = itk.ImageFileWriter.New(image, FileName=str(folder / f"{i}.dcm"), ImageIO=itk.GDCMImageIO.New(KeepOriginalUID=True))
        writer.SetUseInputMetaDataDictionary(True)
        writer.Update()
    return folder


def test_series_of_other_scanners(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5, 10], modality="CT")
    with fails(f"{folder}: its modality is CT: the networks know MRI alone. Take an MR series."):
        read_volume(folder)


def test_several_series_are_named(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5], uid="1.2.3", description="t2 sag")
    for path in write_series(tmp_path / "b", [0, 5], uid="1.2.4").iterdir():
        path.rename(folder / f"second_{path.name}")
    fix = "Convert the folder with dcm2niix, or move each series into a folder of its own."
    with pytest.raises(UserError) as error:
        read_volume(folder)
    assert str(error.value) in [
        f"{folder}: holds 2 DICOM series ({names}). {fix}" for names in ("t2 sag, without a description", "without a description, t2 sag")
    ]


def damage(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def test_whole_series(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5, 10.2, 15, 20])  # scanners round
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "note.txt").write_text("x")
    (folder / "._0.dcm").write_bytes(bytes(200))
    (folder / "x.nii.gz").write_bytes(b"x")
    volume = read_volume(folder)
    assert volume.data.shape == (4, 5, 5)
    assert volume.notes == ()
    assert sorted(volume.data[0, 0]) == [100, 101, 102, 103, 104]
    np.testing.assert_allclose(np.abs(volume.affine[0, 2]), 5, atol=1e-6)


@pytest.mark.parametrize("places_mm", [[3], [0, 5], [0, 0.9, 1.8], [20, 15, 10, 5]])
def test_few_slices_in_any_order(tmp_path, places_mm):
    assert read_volume(write_series(tmp_path / "a", places_mm)).data.shape == (4, 5, len(places_mm))


@pytest.mark.parametrize(
    ("places_mm", "reason"),
    [
        ([0, 5, 10, 25, 30], "its 5 slices are 5 mm apart, but 15 mm between -25 and -10 mm: slices are missing"),
        ([0, 5, 10, 15.6], "its 4 slices are 5 mm apart, but 5.6 mm between -15.6 and -10 mm: slices are missing"),
        ([20, 0, 5], "its 3 slices are 5 mm apart, but 15 mm between -20 and -5 mm: slices are missing"),
        (
            [0, 1, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15],
            "its 12 slices are 1 mm apart, but 2 mm between -15 and -13 mm, 2 mm between -11 and -9 mm, 2 mm between -7 and -5 mm "
            "and 1 more: slices are missing",
        ),
    ],
)
def test_missing_slices(tmp_path, places_mm, reason):
    folder = write_series(tmp_path / "a", places_mm)
    with fails(f"{folder}: {reason}. {AGAIN}"):
        read_volume(folder)


@pytest.mark.parametrize("content", [lambda b: b[:200], lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b[:99], lambda b: b""])
@pytest.mark.parametrize("file", ["2.dcm", "3.dcm"])  # in the middle, and at the end, where no gap shows it
def test_a_file_that_ends_early(tmp_path, file, content):
    folder = write_series(tmp_path / "a", [0, 5, 10, 15])
    (folder / file).write_bytes(content((folder / file).read_bytes()))
    with fails(f"{folder}: no slice can be read from {file}, cut off or without an image. {AGAIN}"):
        read_volume(folder)


def test_all_files_end_early(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5, 10, 15, 20])
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with fails(f"{folder}: no slice can be read from 0.dcm, 1.dcm, 2.dcm and 2 more, cut off or without an image. {AGAIN}"):
        read_volume(folder)


def test_a_report_beside_the_slices_is_no_slice(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5, 10])
    uid = b"1.2.840.10008.5.1.4.1.1.88.11"
    (folder / "report.dcm").write_bytes(bytes(128) + b"DICM" + CLASS + len(uid).to_bytes(2, "little") + uid)
    assert read_volume(folder).data.shape == (4, 5, 3)


def test_a_slice_that_is_a_link_to_nowhere(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5, 10])
    (folder / "3.dcm").symlink_to("no.dcm")
    with fails(f"{folder}: a link that leads nowhere, 3.dcm. Remove it, or bring back the file."):
        read_volume(folder)


def test_a_folder_without_a_series(tmp_path):
    (tmp_path / "x.nii.gz").write_bytes(b"x")
    line = f"{tmp_path}: a folder without a DICOM series. Name a file or the folder of a series; --dataset_dir takes a folder of scans."
    with fails(line):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("places_mm", "twins"), [([0, 0, 5, 5, 10, 10], "0.dcm, 1.dcm"), ([0, 5, 10, 15, 10], "2.dcm, 4.dcm"), ([7, 7], "0.dcm, 1.dcm")]
)
def test_two_images_of_a_slice(tmp_path, places_mm, twins):
    folder = write_series(tmp_path / "a", places_mm)
    with pytest.raises(UserError) as error:
        read_volume(folder)
    reason, _, fix = str(error.value).partition(". Keep")
    assert fix == " one, or move each volume into a folder of its own."
    if len(places_mm) == 6:  # any of the three pairs
        assert reason.startswith(f"{folder}: two images at one place, ")
    else:
        assert reason == f"{folder}: two images at one place, {twins}"


@pytest.mark.parametrize("tag", [PLACE, DIRECTION])
@pytest.mark.parametrize(("which", "named"), [("*", "0.dcm, 1.dcm, 2.dcm and 1 more"), ("2.dcm", "2.dcm")])
def test_no_places(tmp_path, tag, which, named):
    folder = write_series(tmp_path / "a", [0, 5, 10, 15])
    for path in folder.glob(which):
        damage(path, tag, tag[:2] + b"\x31" + tag[3:])  # another tag
    reason = f"where the slice lies (ImagePositionPatient, ImageOrientationPatient) is missing in {named}"
    with fails(f"{folder}: {reason}. Export the original images, not copies or screenshots of them."):
        read_volume(folder)


def test_a_place_without_numbers(tmp_path):
    folder = write_series(tmp_path / "a", [10, 15])
    damage(folder / "1.dcm", rb"15\0\0", b" " * 6)
    with pytest.raises(UserError, match=r"a: where the slice lies \(.*\) is missing in 1.dcm\. Export the original"):
        read_volume(folder)


def test_slices_of_several_directions(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5, 10, 15], directions=[SAGITTAL, AXIAL])
    with fails(f"{folder}: its slices are not parallel. Move those of each direction into a folder of its own."):
        read_volume(folder)


def test_a_stack_that_is_not_upright(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5, 10, 15], sideways_mm=2)
    reason = "its slices are 5 mm apart, and shifted sideways by up to 2 mm from one to the next"
    with fails(f"{folder}: {reason}. Convert them with a tool that straightens such stacks, and segment its NIfTI file."):
        read_volume(folder)
    assert read_volume(write_series(tmp_path / "b", [0, 5, 10, 15], sideways_mm=0.01)).data.shape == (4, 5, 4)
