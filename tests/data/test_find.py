"""Finding scans and labels by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import fails, touch

from scripts.common.errors import CallError
from scripts.data import find
from scripts.data.datalist import inference_entries
from scripts.data.find import case_name, distinct_names, find_images, find_label, has_twin, is_dicom_folder
from scripts.data.volumes import read_volume


def found(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_images(root)]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.nii.gz", "b"),
        ("b.nii", "b"),
        ("b.mha", "b"),
        ("b.nrrd", "b"),
        ("b.mhd", "b"),
        ("b.nhdr", "b"),
        ("a/b.v2_T2w.nii.gz", "b.v2_T2w"),
        ("a/b.nii.nii.gz", "b.nii"),
        ("a/series.12", "series.12"),
        (Path("a/Wirbelsäule 1.mha"), "Wirbelsäule 1"),
    ],
)
def test_case_name(path, name):
    assert case_name(path) == name


def test_distinct_names():
    names = {"/d/P1/T1/scan.nii": "P1/T1/scan", "/d/P1/T2/scan.nii": "T2/scan", "/d/P2/T1/scan.nii": "P2/T1/scan", "/d/P2/b.mha": "b"}
    assert distinct_names(names) == names
    assert list(distinct_names(reversed(names))) == list(reversed(names))
    assert distinct_names(["/d/a.nii", "/d/a.mha"]) == {"/d/a.nii": "//d/a", "/d/a.mha": "//d/a"}  # nothing tells them apart
    assert distinct_names([]) == {}


@pytest.mark.parametrize(("path", "name"), [("A.NII.GZ", "A"), ("A.Nii", "A"), ("A.MHA", "A")])
def test_case_name_of_capital_suffixes(path, name):
    assert case_name(path) == name


def test_find_images(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.nii", "x/c.mha", "x/y/d.nrrd", "x/E.NII.GZ", "f.v2_T2w.nii.gz")
    touch(tmp_path, "b_seg.nii.gz", "x/c_seg.mha", "notes.txt", "a.json", ".hidden.nii", ".git/g.nii.gz", "x/._c.mha")
    assert found(tmp_path) == ["a.nii", "b.nii.gz", "f.v2_T2w.nii.gz", "x/E.NII.GZ", "x/c.mha", "x/y/d.nrrd"]


def test_find_images_takes_dicom_series_by_their_bytes(tmp_path):
    touch(tmp_path, "sub/series.1/IM0001", "sub/series.1/IM0002", "sub/series.2/1.dcm", "scan.nii.gz")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "readme").write_text("no DICOM")
    (tmp_path / "empty").mkdir()
    assert found(tmp_path) == ["scan.nii.gz", "sub/series.1", "sub/series.2"]
    assert find_images(tmp_path / "sub" / "series.1") == [tmp_path / "sub" / "series.1"]  # the data set is one series
    assert is_dicom_folder(tmp_path / "sub" / "series.2")
    assert not is_dicom_folder(tmp_path / "text")
    assert not is_dicom_folder(tmp_path / "sub")
    assert not is_dicom_folder(tmp_path / "empty")


def test_a_series_without_preambles_is_found(tmp_path, monkeypatch):
    """By what GDCM says, who is asked only where files are called like slices."""
    asked = []
    monkeypatch.setattr(find, "holds_series", lambda folder: asked.append(Path(folder).name) or Path(folder).name == "bare")
    for name in ("bare/IM0001", "text/readme", "code/a.py", "beside/IM1", "beside/a.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert found(tmp_path) == ["bare", "beside/a.nii"]
    assert sorted(asked) == ["bare", "text"]


def test_a_hidden_file_does_not_hide_a_dicom_series(tmp_path):
    touch(tmp_path, "series/IM0001")
    (tmp_path / "series" / ".DS_Store").write_bytes(b"Bud1")
    assert is_dicom_folder(tmp_path / "series")


def test_folders_do_not_hide_a_dicom_series(tmp_path):
    touch(tmp_path, "series/IM0001", *(f"series/A{i:02d}/note.txt" for i in range(20)))
    assert is_dicom_folder(tmp_path / "series")


def test_many_other_files_do_not_hide_a_dicom_series(tmp_path):
    touch(tmp_path, "series/slice.dcm", *(f"series/A{i:02d}.htm" for i in range(30)))
    assert is_dicom_folder(tmp_path / "series")
    assert found(tmp_path) == ["series"]


def test_files_that_are_no_slices_by_their_names_are_not_opened(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(find, "is_dicom_file", lambda path: opened.append(path.name))
    touch(tmp_path, "a.nii.gz", "a_seg.json", "a_seg.PNG", "structures.csv", "notes.txt", "x.bin")
    assert not is_dicom_folder(tmp_path)
    assert opened == ["x.bin"]


def test_find_images_errors(tmp_path):
    (tmp_path / "file.nii").touch()
    with fails(f"{tmp_path / 'file.nii'}: a file. --image takes one scan, --dataset_dir the folder that holds the scans."):
        find_images(tmp_path / "file.nii")
    (tmp_path / "file.nii").unlink()
    with fails(f"{tmp_path / 'no'}: no such folder. Set --dataset_dir to the folder that holds the scans."):
        find_images(tmp_path / "no")
    touch(tmp_path, "a_seg.nii.gz", ".b.nii")
    expected = f"{tmp_path}: no scans found. Expected .nii.gz, .nii, .mha, .mhd, .nrrd, .nhdr files or folders with a DICOM series."
    with fails(f"{expected} Files whose names end in _seg are masks, not scans."):
        find_images(tmp_path)
    (tmp_path / "a_seg.nii.gz").unlink()
    with fails(expected):
        find_images(tmp_path)
    touch(tmp_path, "x/b.mgz", "a.nii.bz2")
    with fails(f"{expected} 2 scans in formats that are not searched for (a.nii.bz2, ...): convert to NIfTI (.nii.gz)."):
        find_images(tmp_path)


def test_headers_with_voxels_in_another_file_are_found_once(tmp_path):
    touch(tmp_path, "a.mhd", "a.raw", "b.nhdr", "b.raw.gz", "c.mhd", "c.zraw", "c_seg.mhd", "c_seg.raw")
    assert found(tmp_path) == ["a.mhd", "b.nhdr", "c.mhd"]
    assert find_label(tmp_path / "c.mhd") == tmp_path / "c_seg.mhd"


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["b.mgz"], "1 scan in formats that are not searched for (b.mgz): convert to NIfTI (.nii.gz)."),
        (
            ["x/B.MGH", "c.hdr", "c.img", "d.PAR", "d.REC"],
            "3 scans in formats that are not searched for (c.hdr, ...): convert to NIfTI (.nii.gz).",
        ),
        (["a.json", "a.csv", "a.txt", "a.png", "a.bval", "a.bvec", "a.raw", "a", "a.pdf"], ""),
        (["a_seg.mgz", ".b.mgz", ".x/b.mgz"], ""),  # no scans
        (["images/e.nii", "labels/e.mgz"], ""),
    ],
)
def test_scans_of_other_formats_are_passed_over_in_one_line(tmp_path, caplog, names, line):
    touch(tmp_path, "scans.nii.gz")
    for name in names:
        (touch(tmp_path, name) / name).write_bytes(b"x")
    found(tmp_path)
    assert [record.getMessage() for record in caplog.records] == ([f"{tmp_path}: {line}"] if line else [])


def test_masks_by_other_names_are_passed_over_in_one_line(tmp_path, caplog):
    touch(tmp_path, "a.nii", "a_masked.nii", "a_segmental.nii", "a_labelled.nii", "a_T2_segment.mha")
    touch(tmp_path, "a_dseg.nii", "a_mask.nii.gz", "a_seg-manual.nii", "a_seg_corrected.nii", "b/a_T2_Label.mha", "b_segmentation.nii")
    touch(tmp_path, "a.seg.nrrd", "a_SEG.nii.gz", "a-seg.nii", "Segmentation.nii.gz", "a_labelmap.nii", "a_seg2.nii", "mask.nii")
    assert found(tmp_path) == ["a.nii", "a_T2_segment.mha", "a_labelled.nii", "a_masked.nii", "a_segmental.nii"]
    line = "13 files named like masks (Segmentation.nii.gz, ...): not taken for scans."
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path}: {line}"]
    with pytest.raises(CallError, match=r"no scans found\. .* 1 file named like masks \(a_T2_Label\.mha\)"):
        find_images(tmp_path / "b")


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("sub-01_T2w.nii.gz", "sub-01_T2w_seg.nii.gz"),
        ("sub-01_T2w.nii.gz", "sub-01_seg.nii.gz"),
        ("sub-01_T2w.nii.gz", "sub-01_T2w_seg.mha"),
        ("a.v2.mha", "a.v2_seg.mha"),
        ("images/1_t2.mha", "masks/1_t2.mha"),
        ("images/1_t2.mha", "labels/1_t2.nii.gz"),
        ("imagesTr/1_t2.nii", "labelsTr/1_t2.nii"),
        ("sub-01/series.3", "sub-01/series.3_seg.nii.gz"),
        ("b.nii.gz", "b_seg.NII"),
        ("B_T2W.NII.GZ", "B_seg.NII.GZ"),
        ("images/c.nii.gz", "labels/c.MHA"),
        ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"),  # nnU-Net numbers the channels of an image
        ("images/zheng02_T2w.nii.gz", "labels/zheng02_seg.nii.gz"),
        ("images/zheng02_T2w.nii.gz", "masks/zheng02_T2w_seg.nii.gz"),
    ],
)
def test_find_label(tmp_path, image, label):
    touch(tmp_path, image, label)
    assert find_label(tmp_path / image) == tmp_path / label


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("sub-01_T2w.nii.gz", "sub-01_T1w_seg.nii.gz"),
        ("sub-01.nii.gz", "sub_seg.nii.gz"),
        ("sub-01_ses-1_T2w.nii.gz", "sub-01_seg.nii.gz"),  # one part of the name may be missing, not two
        ("pictures/1.mha", "masks/1.mha"),
        ("images/1.mha", "labelsTr/1.mha"),
        ("a.nii.gz", "x/a_seg.nii.gz"),
        ("images/a_0000.nii.gz", "masks/a_00.nii.gz"),
        ("images/a_2024.nii.gz", "masks/a.nii.gz"),  # a number of its own, not a channel of nnU-Net
        ("images/a_T2w.nii.gz", "masks/a_T1w_seg.nii.gz"),
        ("images/_T2w.nii.gz", "images/_seg.nii.gz"),
        ("images/a_ses-1_T2w.nii.gz", "masks/a_seg.nii.gz"),
    ],
)
def test_find_label_takes_no_other(tmp_path, image, label):
    touch(tmp_path, image, label)
    assert find_label(tmp_path / image) is None


def test_find_label_prefers_the_nearest_name(tmp_path):
    touch(tmp_path, "images/a_T2w.nii.gz", "images/a_seg.nii.gz", "labels/a_T2w.nii.gz", "images/a_T2w_seg.nii.gz")
    assert find_label(tmp_path / "images/a_T2w.nii.gz") == tmp_path / "images/a_T2w_seg.nii.gz"
    (tmp_path / "images/a_T2w_seg.nii.gz").unlink()
    assert find_label(tmp_path / "images/a_T2w.nii.gz") == tmp_path / "images/a_seg.nii.gz"
    (tmp_path / "images/a_seg.nii.gz").unlink()
    touch(tmp_path, "labels/a_T2w_seg.nii.gz", "labels/a_seg.nii.gz")
    for name in ("a_T2w", "a_T2w_seg", "a_seg"):
        assert find_label(tmp_path / "images/a_T2w.nii.gz") == tmp_path / f"labels/{name}.nii.gz"
        (tmp_path / f"labels/{name}.nii.gz").unlink()


def test_the_label_of_another_scan_is_not_taken(tmp_path):
    """SPIDER has 1_t2 and 1_t2_SPACE."""
    touch(tmp_path, "1_t2.mha", "1_t2_SPACE.mha", "1_t2_seg.mha", "2_t2_seg.mha", "2_t2_SPACE.mha")
    assert find_label(tmp_path / "1_t2.mha") == tmp_path / "1_t2_seg.mha"
    assert find_label(tmp_path / "1_t2_SPACE.mha") is None
    assert find_label(tmp_path / "2_t2_SPACE.mha") == tmp_path / "2_t2_seg.mha"
    touch(tmp_path, "images/1_t2.mha", "images/1_t2_SPACE.mha", "labels/1_t2_seg.mha")
    assert find_label(tmp_path / "images/1_t2.mha") == tmp_path / "labels/1_t2_seg.mha"
    assert find_label(tmp_path / "images/1_t2_SPACE.mha") is None
    assert find.find_image(tmp_path / "labels/1_t2_seg.mha") == tmp_path / "images/1_t2.mha"


def test_scans_of_one_stem_in_a_folder_are_twins(tmp_path):
    touch(tmp_path, "a.nii", "a.nii.gz", "b.mha", "c.nii", "x/a.mha", "s.nii", "t.nii", "t/note.txt")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "IM1").write_bytes(b"\0" * 128 + b"DICM")
    names = ("a.nii", "a.nii.gz", "b.mha", "c.nii", "x/a.mha", "s.nii", "s", "t.nii")
    assert [name for name in names if has_twin(tmp_path / name)] == ["a.nii", "a.nii.gz", "s.nii"]


def test_twins_whose_suffixes_are_in_capitals(tmp_path):
    touch(tmp_path, "a.NII", "a.MHA", "b.nii", "b.NRRD", "c.NII.GZ", "d.nii")
    names = ("a.NII", "a.MHA", "b.nii", "b.NRRD", "c.NII.GZ", "d.nii")
    assert [name for name in names if has_twin(tmp_path / name)] == ["a.NII", "a.MHA", "b.nii", "b.NRRD"]


def test_the_scan_of_a_label_in_capitals(tmp_path):
    touch(tmp_path, "b.nii.gz", "b_seg.NII", "c_T2w.NII", "c_seg.nii.gz")
    assert [find.find_image(label) for label in find.find_masks(tmp_path)] == [tmp_path / "b.nii.gz", tmp_path / "c_T2w.NII"]


def test_links_to_folders_are_followed_once(tmp_path):
    touch(tmp_path, "in/a.nii.gz", "elsewhere/b.nii.gz")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "self").symlink_to(".")
    (tmp_path / "in" / "nowhere").symlink_to(tmp_path / "no")
    (tmp_path / "in" / ".hidden").symlink_to(touch(tmp_path / "hidden", "c.nii.gz"))
    assert found(tmp_path / "in") == ["a.nii.gz", "again/b.nii.gz"]


def test_a_folder_keeps_its_own_name_whatever_links_to_it(tmp_path):
    touch(tmp_path, "images/deep/x.nii.gz")
    (tmp_path / "a_link").symlink_to(tmp_path / "images" / "deep")
    (tmp_path / "images" / "back").symlink_to(tmp_path)
    assert found(tmp_path) == ["images/deep/x.nii.gz"]
    (tmp_path / "images" / "deep" / "y").symlink_to(touch(tmp_path / "z" / "part", "s.nii").parent)  # a part of it is found on another way
    assert found(tmp_path / "images" / "deep") == ["x.nii.gz", "y/part/s.nii"]


def test_a_linked_folder_may_be_the_dataset(tmp_path):
    touch(tmp_path, "data/a.nii.gz")
    (tmp_path / "link").symlink_to("data")
    assert find_images(tmp_path / "link") == [tmp_path / "link" / "a.nii.gz"]


def test_a_series_beside_other_files_is_found(tmp_path):
    touch(tmp_path, "series/1.dcm", "series/2.dcm", "series/x.nii.gz", "series/x_seg.nii.gz", "series/x_seg.json")
    assert find_images(tmp_path) == [tmp_path / "series", tmp_path / "series" / "x.nii.gz"]


def test_a_folder_that_cannot_be_seen_is_left_to_the_reader(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", closed)
    assert inference_entries("nowhere", image=tmp_path) == [{"image": str(tmp_path)}]
    with fails(f"{tmp_path}: cannot be read ([Errno 13] Permission denied: '{tmp_path}'). Export or download it again."):
        read_volume(tmp_path)


def test_the_mask_of_a_twin(tmp_path):
    """Inference names masks after the whole name where two scans share a stem."""
    touch(tmp_path, "a.nii.gz", "a.mha", "a.nii.gz_seg.nii.gz", "a.mha_seg.nii.gz")
    for scan in ("a.nii.gz", "a.mha"):
        mask = tmp_path / f"{scan}_seg.nii.gz"
        assert find_label(tmp_path / scan) == mask
        assert find.find_image(mask) == tmp_path / scan


def test_the_mask_of_a_twin_in_a_folder_of_labels(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/a.mha", *(f"labels/{stem}.nii.gz" for stem in ("a", "a.nii.gz_seg", "a.mha_seg")))
    for scan in ("a.nii.gz", "a.mha"):
        assert find_label(tmp_path / "images" / scan) == tmp_path / "labels" / f"{scan}_seg.nii.gz"


def test_the_series_of_a_mask(tmp_path):
    touch(tmp_path, "images/t2/IM1.dcm", "labels/t2.nii.gz", "p1_T2/IM1.dcm", "p1_seg.nii.gz")
    for series, mask in (("images/t2", "labels/t2.nii.gz"), ("p1_T2", "p1_seg.nii.gz")):
        assert find_label(tmp_path / series) == tmp_path / mask
        assert find.find_image(tmp_path / mask) == tmp_path / series
    touch(tmp_path, "t2/IM1.dcm", "t2_seg.nii.gz", "t1/note.txt", "t1_seg.nii.gz")
    assert find_label(tmp_path / "t2") == tmp_path / "t2_seg.nii.gz"
    assert [find.find_image(tmp_path / f"{stem}_seg.nii.gz") for stem in ("t2", "t1")] == [tmp_path / "t2", None]
