"""Volumes of every format, what a reader says of damaged ones, and grids that are one grid."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from conftest import fails

from scripts.common.errors import UserError
from scripts.data.volumes import Volume, grid_mismatch, not_on_grid, on_grid, read_grid, read_volume, voxel_mm3


def test_grid_tolerance():
    close, far = np.eye(4), np.eye(4)
    close[0, 3], far[1, 1] = 0.0009, 1.0011
    assert grid_mismatch((2, 2, 2), np.eye(4), (2, 2, 2), close) == ""
    assert "0.0011 mm" in grid_mismatch((2, 2, 2), np.eye(4), (2, 2, 2), far)
    turned = np.eye(4)
    turned[0, 1] = turned[1, 0] = 9e-4  # small, but the corner of 401 voxels lies 0.36 mm off
    assert grid_mismatch((2, 2, 2), np.eye(4), (2, 2, 2), turned) == ""
    assert grid_mismatch((2, 401, 2), np.eye(4), (2, 401, 2), turned) == "affines that differ by up to 0.36 mm"


@pytest.mark.parametrize("axes", ["LPI", "PIR", "SAL"])
def test_a_grid_whose_axes_have_another_order(axes):
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.diag([4.0, 1.0, 1.5, 1.0]))
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)))
    assert grid_mismatch(image.shape, image.affine, turned.shape, turned.affine) == "its axes have another order or direction"
    assert "save it with those of its scan" in not_on_grid("a", "b", "its axes have another order or direction").lower()
    moved = turned.affine + np.array([[0, 0, 0, 3.0], *[[0.0] * 4] * 3])
    assert grid_mismatch(image.shape, image.affine, turned.shape, moved).startswith(("affines", "shape"))


def test_volume_of_a_voxel():
    sheared = np.diag([-4.0, 0.5, 1.0, 1.0])
    sheared[1, 0] = 3.0  # its first edge is 5 mm long, and its height above the others 4 mm as before
    assert voxel_mm3(sheared) == pytest.approx(2)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".mhd", ".nhdr"])
def test_read_volume_of_other_formats(tmp_path, suffix, monkeypatch):
    import itk
    from monai.transforms.io.array import SUPPORTED_READERS

    class Pynrrd:  # the reader that MONAI prefers where that package is installed
        def verify_suffix(self, filename):
            raise AssertionError

    monkeypatch.setitem(SUPPORTED_READERS, "nrrdreader", Pynrrd)

    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)  # ITK orders z, y, x
    image = itk.image_from_array(array)
    image.SetSpacing([1.0, 2.0, 4.0])
    image.SetOrigin([5.0, 6.0, 7.0])
    itk.imwrite(image, str(tmp_path / f"a{suffix}"))
    volume = read_volume(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(volume.data, array.T)
    np.testing.assert_allclose(volume.affine, [[-1, 0, 0, -5], [0, -2, 0, -6], [0, 0, 4, 7], [0, 0, 0, 1]])
    assert volume.dtype == "int16"


@pytest.mark.parametrize(
    ("suffix", "what"), [(".mgz", "format, .mgz,"), (".MGH", "format, .MGH,"), (".bin", "format, .bin,"), ("", "format")]
)
def test_a_format_that_is_not_read(tmp_path, suffix, what):
    nib.save(nib.MGHImage(np.ones((3, 4, 5), np.float32), np.eye(4)), tmp_path / "a.mgz")
    path = (tmp_path / "a.mgz").rename(tmp_path / f"a{suffix}")
    with fails(f"{path}: its {what} is not supported. Convert it to NIfTI (.nii.gz), with mri_convert of FreeSurfer for example."):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.NHDR", "slice", "slice.dcm"])
def test_a_damaged_file_of_a_format_that_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(128) + b"DICM" + bytes(20))
    with fails(f"{tmp_path / name}: cannot be read (it is of another format than its name says). Export or download it again."):
        read_volume(tmp_path / name)


def test_read_volume_errors(tmp_path):
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "text.nii.gz").write_text("hello")
    (tmp_path / "text.nrrd").write_text("hello")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), tmp_path / "four.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 1), np.int16), np.eye(4)), tmp_path / "one.nii.gz")
    for name, message in (
        ("absent.nii", "absent.nii: no such file"),
        ("empty.nii.gz", r"empty.nii.gz: the file is empty \(0 bytes\). Export or download it again."),
        ("text.nii.gz", r"text.nii.gz: cannot be read \(.+\). Export or download it again."),
        ("text.nrrd", r"text.nrrd: cannot be read \(.+\). Export or download it again."),
        ("four.nii.gz", r"four.nii.gz: has the shape \(4, 4, 4, 2\). Export one 3-D volume."),
    ):
        with pytest.raises(UserError, match=message):
            read_volume(tmp_path / name)
    assert read_volume(tmp_path / "one.nii.gz").data.shape == (4, 4, 4)


def test_a_label_in_another_order_of_axes_is_turned_to_its_scan():
    data = np.arange(24).reshape(2, 3, 4)
    scan = Volume(np.zeros((4, 3, 2)), np.array([[0, 0, -3.0, 7], [0, 2.0, 0, -1], [-1.5, 0, 0, 2], [0, 0, 0, 1]]), "int64")
    turned = data.transpose(2, 1, 0)[::-1]
    affine = scan.affine @ np.array([[0, 0, -1.0, 3], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(on_grid("l", Volume(data, affine, "int64"), "s", scan), turned)
    assert on_grid("l", Volume(turned, scan.affine, "int64"), "s", scan) is turned
    for bad in (nib.affines.from_matvec(np.eye(3), [0.5, 0, 0]) @ affine, np.full((4, 4), np.nan), np.diag([1.0, 1.0, 0.0, 1.0])):
        with pytest.raises(UserError, match=r"^l: not on the grid of s "):
            on_grid("l", Volume(data, bad, "int64"), "s", scan)


def test_a_flat_sform_beside_a_valid_qform(tmp_path):
    """Some converters set its code and leave it at zero; scan and label have one grid then."""
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([2.0, 1.0, 1.0, 1.0]))
    image.set_qform(image.affine, 1)
    image.to_filename(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[280:328] = bytes(48)  # the rows of the sform, which nibabel has filled in
    content[254:256] = (1).to_bytes(2, "little")  # its code
    (tmp_path / "a.nii").write_bytes(content)
    assert not nib.load(tmp_path / "a.nii").affine[:3].any()
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.affine, np.diag([2.0, 1.0, 1.0, 1.0]))
    assert volume.notes == ("the sform is not that of a volume: the qform is used",)
    np.testing.assert_array_equal(read_grid(tmp_path / "a.nii")[1], volume.affine)
