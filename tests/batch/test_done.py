"""Records of what a mask is made from."""

from __future__ import annotations

import os

import pytest
from conftest import BUNDLE

from scripts.batch.done import Done
from scripts.data.find import files_of_voxels


@pytest.mark.parametrize(("header", "voxels"), [("a.mhd", "a.raw"), ("a.mhd", "a.zraw"), ("a.nhdr", "a.raw.gz"), ("b.c.NHDR", "b.c.gz")])
def test_the_file_of_the_voxels_counts(tmp_path, header, voxels):
    for name in (header, voxels, "other.raw", "weights.pt"):
        (tmp_path / name).write_bytes(b"1234")
    done = Done(str(tmp_path), str(tmp_path), str(tmp_path / "weights.pt"), {}, str(BUNDLE / "configs" / "inference.yaml"))
    first = done.made_from(tmp_path / header)
    assert first["scan"].startswith("8 bytes, ")
    (tmp_path / "other.raw").write_bytes(b"1")
    assert done.made_from(tmp_path / header) == first
    os.utime(tmp_path / voxels, ns=(0, 2**61))
    assert done.made_from(tmp_path / header)["scan"] == f"8 bytes, modified at {2**61} ns"


@pytest.mark.parametrize(
    ("header", "line"),
    [("a.mhd", "ElementDataFile = image.bin\r\n"), ("a.nhdr", "data file:\timage.bin\n"), ("a.NHDR", "datafile: image.bin")],
)
def test_the_file_of_the_voxels_counts_by_the_name_in_the_header(tmp_path, header, line):
    for name, content in ((header, b"NDims = 3\n" + line.encode()), ("image.bin", b"1234"), ("a.txt", b"1"), ("weights.pt", b"1")):
        (tmp_path / name).write_bytes(content)
    assert files_of_voxels(tmp_path / header) == [tmp_path / "image.bin"]
    done = Done(str(tmp_path), str(tmp_path), str(tmp_path / "weights.pt"), {}, str(BUNDLE / "configs" / "inference.yaml"))
    os.utime(tmp_path / "image.bin", ns=(0, 2**61))
    assert done.made_from(tmp_path / header)["scan"].endswith(f"modified at {2**61} ns")


def test_what_is_written_beside_the_slices_of_a_series_does_not_count(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    for name in ("series/IM1", "series/IM2.dcm", "weights.pt"):
        (tmp_path / name).write_bytes(b"1234")
    done = Done(str(folder), str(folder), str(tmp_path / "weights.pt"), {}, str(BUNDLE / "configs" / "inference.yaml"))
    first = done.made_from(folder)
    assert first["scan"].startswith("8 bytes, ")
    (folder / "out").mkdir()
    for name in ("series_seg.nii.gz", "series_seg.png", "series_seg.json", "spines.csv", "overview.html", ".DS_Store"):
        (folder / name).write_bytes(b"1")
    assert done.made_from(folder) == first
    (folder / "IM3").write_bytes(b"1")
    assert done.made_from(folder) != first


@pytest.mark.parametrize(("changed", "same"), [({}, True), ({"size": 301}, False), ({"amp": True}, False), ({"spacing": [1, 1, 2]}, False)])
def test_settings_count_by_their_value_not_by_their_spelling(tmp_path, changed, same):
    (tmp_path / "weights.pt").write_bytes(b"1234")
    made_from = []
    for settings in (
        {"size": 300.0, "amp": False, "spacing": [1.0, 1.0, 1.0], "scheme": "verse"},
        {"size": 300, "amp": False, "spacing": (1, 1, 1), "scheme": "verse", **changed},
    ):
        config = str(BUNDLE / "configs" / "inference.yaml")
        done = Done(str(tmp_path), str(tmp_path), str(tmp_path / "weights.pt"), settings, config)
        made_from.append(done.made_from(tmp_path / "weights.pt"))
    assert (made_from[0] == made_from[1]) is same
