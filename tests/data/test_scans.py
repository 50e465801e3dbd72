"""Files that may not be scans get a note."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import fails

from scripts.common.errors import ScanError
from scripts.data.scans import check_grid, few_values, read_scan, shear_notes, slice_notes

MASK, SCAN = np.arange(4096).reshape(16, 16, 16) % 5, np.arange(4096).reshape(16, 16, 16) % 200


def saved(folder: Path, values: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([4.0, 1.0, 1.0, 1.0])), folder / "a.nii.gz")
    return folder / "a.nii.gz"


def test_a_mask_in_the_place_of_a_scan(tmp_path):
    assert read_scan(saved(tmp_path, MASK)).notes == ("it holds 5 different values only: a mask, no scan?",)
    assert read_scan(saved(tmp_path, SCAN)).notes == ()


def test_values_of_a_ct(tmp_path):
    note = "it has values down to -1000, as a CT has: the networks know MRI alone"
    assert read_scan(saved(tmp_path, 10 * SCAN - 1000)).notes == (note,)


@pytest.mark.parametrize("order", ["C", "F"])
def test_few_values(order, monkeypatch):
    assert few_values(np.asarray(MASK, np.float32, order=order)) == 5
    assert few_values(np.asarray(SCAN, np.float32, order=order)) == 200
    rare = np.zeros((8, 8, 8), np.float32)
    rare[3, 3, 3:6] = (1, 2, 3)
    monkeypatch.setattr("scripts.data.scans.SAMPLE", 16)  # which misses them
    assert few_values(rare) == 4


@pytest.mark.parametrize(
    ("shear", "notes"),
    [
        (0.0, []),
        (np.tan(np.deg2rad(0.9)), []),
        (-0.5, ["its axes are 27 degrees from right angles: distances and outlines are coarse, take the original"]),
    ],
)
def test_axes_that_are_not_at_right_angles(shear, notes):
    c, s = np.cos(0.4), np.sin(0.4)
    turned = np.eye(4)
    turned[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    sheared = np.diag([4.0, 0.8, 0.8, 1.0])
    sheared[1, 0] = shear * 4
    assert shear_notes(turned @ sheared) == notes


AXIAL = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]]
ADVICE = ": outlines and measures are coarse, take a sagittal series where there is one"
OBLIQUE = [[3.46, -0.5, 0, 0], [2.0, 0.87, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1]]  # slices of 4 mm, 30 degrees off the sagittal plane


@pytest.mark.parametrize(
    ("affine", "notes"),
    [
        (np.diag([4.0, 0.8, 0.8, 1.0]), []),
        (np.diag([1.0, 1.0, 1.0, 1.0]), []),
        (np.diag([1.0, 1.0, 1.5, 1.0]), []),
        (np.diag([1.0, 2.0, 2.0, 1.0]), []),  # two edges are the longest: no stack of slices
        (OBLIQUE, []),
        (np.diag([5.0000002, 0.8, 0.8, 1.0]), []),  # 5 mm in float32
        (np.diag([-8.0, 0.8, 0.8, 1.0]), ["slices of 8 mm, thicker than any in training: outlines and measures are coarse"]),
        (AXIAL, ["axial slices of 5 mm: outlines and measures are coarse, take a sagittal series where there is one"]),
        (
            np.diag([0.9, -3.5, 0.9, 1.0]),
            ["coronal slices of 3.5 mm: outlines and measures are coarse, take a sagittal series where there is one"],
        ),
    ],
)
def test_how_a_scan_was_sliced(affine, notes):
    assert slice_notes(np.asarray(affine)) == notes


def test_the_note_goes_with_the_scan(tmp_path):
    wide = np.repeat(SCAN, 8, axis=int(np.abs(np.asarray(AXIAL)[0, :3]).argmax()))
    nib.save(nib.Nifti1Image(wide.astype(np.int16), np.asarray(AXIAL)), tmp_path / "axial.nii.gz")
    assert [note.split(":")[0] for note in read_scan(tmp_path / "axial.nii.gz").notes] == ["axial slices of 5 mm"]


def test_a_stack_that_is_narrower_than_a_vertebra(tmp_path):
    data = np.random.default_rng(0).integers(0, 400, (40, 40, 8)).astype(np.int16)
    note = "it is 29.6 mm wide, less than a vertebra: outlines and measures are doubtful"
    for spacing_mm, notes in ((3.7, (note,)), (3.75, ())):
        affine = np.array([[0, 0, spacing_mm, 0], [-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1]])
        nib.save(nib.Nifti1Image(data, affine), tmp_path / "a.nii")
        assert read_scan(tmp_path / "a.nii").notes == notes


def test_a_single_slice_of_a_series(tmp_path, monkeypatch):
    path = tmp_path / "slice.nii.gz"
    nib.save(nib.Nifti1Image(np.arange(900, dtype=np.int16).reshape(1, 30, 30), np.eye(4)), path)
    alone = "1 slice only: the spine is hardly seen in so few"
    assert read_scan(path).notes == (alone,)
    monkeypatch.setattr("scripts.data.scans.is_dicom_file", lambda file: file == path)
    assert read_scan(path).notes == (f"{alone}. A DICOM series is given by its folder",)


def test_the_slices_of_a_localizer():
    shape = (3, 200, 200)
    with fails("x.nii: its voxels measure 20 x 1.5 x 1.5 mm, and 0.05 to 12.0 mm are possible. "
               "Take a series of thinner slices: is it a localizer?"):  # fmt: skip
        check_grid("x.nii", shape, np.diag([20, 1.5, 1.5, 1]))
    with pytest.raises(ScanError, match=r"1500 mm, and .* possible\. Is the unit mm\?"):  # micrometres
        check_grid("x.nii", shape, np.diag([4000, 1500, 1500, 1]))
