"""Damaged MetaImage and NRRD files: one short reason each, without places in the source of ITK, and nothing of a patient's name."""

from __future__ import annotations

from pathlib import Path

import itk
import numpy as np
import pytest
from conftest import fails

from scripts.data.volumes import read_volume

VOXELS = np.random.default_rng(0).integers(0, 99, (6, 7, 8)).astype(np.int16)
NAME = "SMITH^JOHN"


def content(folder: Path, suffix: str, compressed: bool = False) -> bytes:
    itk.imwrite(itk.image_from_array(VOXELS), str(folder / f"whole{suffix}"), compression=compressed)
    return (folder / f"whole{suffix}").read_bytes()


def check(path: Path, damaged: bytes, reason: str, capfd) -> None:
    path.write_bytes(damaged)
    capfd.readouterr()
    with fails(f"{path}: cannot be read ({reason}). Export or download it again."):
        read_volume(path)
    assert capfd.readouterr().err == ""  # ITK's lines go there, whatever Python does


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("DimSize", f"PatientName = {NAME}\nDimSice", "its header lacks DimSize"),
        ("NDims = 3", "NDims = 2", "NDims and DimSize in its header are not those of an image"),
        ("8 7 6", "8 7 -6", "NDims and DimSize in its header are not those of an image"),
        ("8 7 6", f"8 7 {NAME}", "NDims and DimSize in its header are not those of an image"),
        ("8 7 6", "8 7 9999", "672 of the 1119888 bytes of its voxels are there"),
        ("MET_SHORT", f"MET_{NAME}", "the ElementType in its header is none of an image"),
        ("MET_SHORT", "MET_DOUBLE", "672 of the 2688 bytes of its voxels are there"),
        ("LOCAL", f"{NAME}.raw", "the file of voxels that its header names is not there"),
    ],
)
def test_header_of_a_metaimage(tmp_path, capfd, old, new, reason):
    check(tmp_path / "a.mha", content(tmp_path, ".mha").replace(old.encode(), new.encode()), reason, capfd)


def test_a_header_without_its_voxels(tmp_path, capfd):
    header = content(tmp_path, ".mhd")
    check(tmp_path / "a.mhd", header.replace(b"whole.raw", b"gone.raw"), "the file of voxels that its header names is not there", capfd)
    (tmp_path / "whole.raw").write_bytes(bytes(100))
    check(tmp_path / "a.mhd", header, "100 of the 672 bytes of its voxels are there", capfd)


def test_a_metaimage_that_ends_early(tmp_path, capfd):
    whole, compressed = content(tmp_path, ".mha"), content(tmp_path, ".mha", compressed=True)
    size = int(compressed.partition(b"CompressedDataSize = ")[2].partition(b"\n")[0])
    check(tmp_path / "a.mha", whole[:-72], "600 of the 672 bytes of its voxels are there", capfd)
    check(tmp_path / "a.mha", whole[: -VOXELS.nbytes], "0 of the 672 bytes of its voxels are there", capfd)
    check(tmp_path / "a.mha", compressed[:-100], f"{size - 100} of the {size} bytes of its voxels are there", capfd)
    check(tmp_path / "a.mha", whole[:60], "its header lacks DimSize, ElementType, ElementDataFile", capfd)
    check(tmp_path / "a.mha", b"\n" * 70_000, "its header lacks NDims, DimSize, ElementType, ElementDataFile", capfd)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("type: short", f"{NAME} 1970", "its header is damaged, or names a file that is not there"),
        ("type: short", f"type: {NAME}", "its header is damaged, or names a file that is not there"),
        ("encoding: raw", f"encoding: raw\ndata file: {NAME}.raw", "its header is damaged, or names a file that is not there"),
        ("8 7 6", "8 7 0", "axis 2 size is zero"),
        ("NRRD000", "HELLO", "it is of another format than its name says"),
    ],
)
def test_header_of_an_nrrd(tmp_path, capfd, old, new, reason):
    check(tmp_path / "a.nrrd", content(tmp_path, ".nrrd").replace(old.encode(), new.encode()), reason, capfd)


def test_an_nrrd_that_ends_early(tmp_path, capfd):
    check(tmp_path / "a.nrrd", content(tmp_path, ".nrrd", compressed=True)[:-100], "expected 672 bytes but received 498", capfd)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("compressed", [True, False])
def test_whole_files(tmp_path, suffix, compressed):
    content(tmp_path, suffix, compressed)
    np.testing.assert_array_equal(read_volume(tmp_path / f"whole{suffix}").data, VOXELS.T)


@pytest.mark.parametrize("name", ["a.raw", "a:b.raw", "a=b.raw"])
def test_voxels_in_a_file_of_their_own(tmp_path, name):
    whole = content(tmp_path, ".mha")
    (tmp_path / name).write_bytes(whole[-VOXELS.nbytes :])
    (tmp_path / "a.mha").write_bytes(whole[: -VOXELS.nbytes].replace(b"LOCAL", name.encode()))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mha").data, VOXELS.T)


def test_a_header_with_colons(tmp_path):
    whole = content(tmp_path, ".mha")
    header = whole[: -VOXELS.nbytes].replace(b" = ", b": ")
    (tmp_path / "a.mha").write_bytes(header + whole[-VOXELS.nbytes :])
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mha").data, VOXELS.T)


def test_voxels_as_text(tmp_path):
    header = (
        "ObjectType = Image\nNDims = 3\nDimSize = 2 1 2\nElementType = MET_SHORT\nBinaryData = False\nElementDataFile = LOCAL\n1 2 3 4\n"
    )
    (tmp_path / "a.mha").write_text(header)
    assert read_volume(tmp_path / "a.mha").data.ravel("F").tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_flat_images_and_series(suffix, tmp_path):
    flat, series = tmp_path / f"flat{suffix}", tmp_path / f"series{suffix}"
    itk.imwrite(itk.image_from_array(VOXELS[0]), str(flat))
    with fails(f"{flat}: has the shape (8, 7). Export one 3-D volume."):
        read_volume(flat)
    itk.imwrite(itk.image_from_array(np.stack([VOXELS, VOXELS + 2])), str(series))
    volume = read_volume(series, series=True)
    np.testing.assert_array_equal(volume.data, VOXELS.T + 1)
    assert volume.notes == ("a series of 2 volumes: their mean is used",)
