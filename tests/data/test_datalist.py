"""Finding scans and labels by name, and datalists that are read, refused and written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from conftest import fails, touch
from test_dicom import write_series

from scripts.common.errors import UserError
from scripts.data.datalist import inference_entries, read_datalist, split_entries, training_entries, write_datalist
from scripts.data.find import case_name, find_images, find_label, has_twin, is_dicom_folder
from scripts.data.volumes import read_volume


def found(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_images(root)]


# names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.nii.gz", "b"),
        ("b.nii", "b"),
        ("b.mha", "b"),
        ("b.nrrd", "b"),
        ("a/b.v2_T2w.nii.gz", "b.v2_T2w"),
        ("a/b.nii.nii.gz", "b.nii"),
        ("a/series.12", "series.12"),
        (Path("a/Wirbelsäule 1.mha"), "Wirbelsäule 1"),
    ],
)
def test_case_name(path, name):
    assert case_name(path) == name


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


def test_a_hidden_file_does_not_hide_a_dicom_series(tmp_path):
    touch(tmp_path, "series/IM0001")
    (tmp_path / "series" / ".DS_Store").write_bytes(b"Bud1")
    assert is_dicom_folder(tmp_path / "series")


def test_folders_do_not_hide_a_dicom_series(tmp_path):
    touch(tmp_path, "series/IM0001", *(f"series/A{i:02d}/note.txt" for i in range(20)))
    assert is_dicom_folder(tmp_path / "series")


def test_find_images_errors(tmp_path):
    with fails(f"{tmp_path / 'no'}: no such folder. Set --dataset_dir to the folder that holds the scans."):
        find_images(tmp_path / "no")
    touch(tmp_path, "a_seg.nii.gz", ".b.nii")
    with fails(f"{tmp_path}: no scans found. Expected .nii.gz, .nii, .mha, .nrrd files or folders with a DICOM series."):
        find_images(tmp_path)


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
        ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"),  # nnU-Net numbers the channels of an image
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
    assert find_label(tmp_path / "images/a_T2w.nii.gz") == tmp_path / "labels/a_T2w.nii.gz"


def test_the_label_of_another_scan_is_not_taken(tmp_path):
    """SPIDER has 1_t2 and 1_t2_SPACE."""
    touch(tmp_path, "1_t2.mha", "1_t2_SPACE.mha", "1_t2_seg.mha", "2_t2_seg.mha", "2_t2_SPACE.mha")
    assert find_label(tmp_path / "1_t2.mha") == tmp_path / "1_t2_seg.mha"
    assert find_label(tmp_path / "1_t2_SPACE.mha") is None
    assert find_label(tmp_path / "2_t2_SPACE.mha") == tmp_path / "2_t2_seg.mha"


# reading


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_read_datalist(tmp_path):
    data = touch(tmp_path / "data", "a.nii", "a_seg.nii", "x/b.mha")
    entry = {"image": "a.nii", "label": "a_seg.nii", "source": "spider", "labelled": [20, 120], "patient": "a"}
    datalist = write(tmp_path / "list.json", {"name": "x", "training": [entry], "validation": [{"image": "x/b.mha"}], "testing": []})
    expected = {**entry, "image": str(data / "a.nii"), "label": str(data / "a_seg.nii")}
    assert read_datalist(datalist, data) == {"training": [expected], "validation": [{"image": str(data / "x/b.mha")}], "testing": []}


def test_read_datalist_resolves_a_relative_dataset_dir(tmp_path, monkeypatch):
    touch(tmp_path / "data", "a.nii")
    write(tmp_path / "list.json", {"training": [{"image": "a.nii"}]})
    monkeypatch.chdir(tmp_path)
    assert read_datalist("list.json", "data") == {"training": [{"image": str(tmp_path / "data" / "a.nii")}]}


def test_read_datalist_errors(tmp_path):
    touch(tmp_path, "a.nii")
    path = tmp_path / "list.json"
    with fails(f"{path}: no such datalist. Write one with: python -m monai.bundle run prepare --config_file configs/tools.yaml"):
        read_datalist(path, tmp_path)
    with fails(f"{path}: not a JSON file (Expecting ',' delimiter: line 1 column 16 (char 15))"):
        read_datalist(write(path, '{"training": []'), tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: not a JSON file \('utf-8' codec"):
        read_datalist(path, tmp_path)
    for content in ({}, {"training": []}, {"training": {"image": "a.nii"}}, [{"image": "a.nii"}], 3):
        with fails(f"{path}: holds no list of scans. Expected one of the keys training, validation, testing."):
            read_datalist(write(path, content), tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a.nii", "{list}: every entry needs an 'image' path, got 'a.nii'"),
        ({"label": "a.nii"}, "{list}: every entry needs an 'image' path, got {{'label': 'a.nii'}}"),
        ({"image": 3}, "{list}: every entry needs an 'image' path, got {{'image': 3}}"),
        ({"image": "b.nii"}, "{list}: image {root}/b.nii does not exist. Is dataset_dir ({root}) the folder its paths start from?"),
        (
            {"image": "a.nii", "label": "b.nii"},
            "{list}: label {root}/b.nii does not exist. Is dataset_dir ({root}) the folder its paths start from?",
        ),
    ],
)
def test_bad_entries(tmp_path, entry, message):
    datalist = write(touch(tmp_path, "a.nii") / "list.json", {"training": [{"image": "a.nii"}, entry]})
    with fails(message.format(list=datalist, root=tmp_path)):
        read_datalist(datalist, tmp_path)


def test_bad_labelled(tmp_path):
    datalist = write(touch(tmp_path, "a.nii") / "list.json", {"training": [{"image": "a.nii", "labelled": [20, 99]}]})
    with pytest.raises(UserError, match=rf"list.json: 'labelled' of {tmp_path}/a.nii: unknown label values \[99\]\. The label scheme"):
        read_datalist(datalist, tmp_path)


def test_labelled_may_be_null(tmp_path):
    datalist = write(touch(tmp_path, "a.nii") / "list.json", {"training": [{"image": "a.nii", "labelled": None}]})
    assert len(read_datalist(datalist, tmp_path)["training"]) == 1


def test_split_entries(tmp_path):
    touch(tmp_path, "a.nii", "a_seg.nii", "b.nii")
    labelled = {"image": "a.nii", "label": "a_seg.nii"}
    datalist = write(tmp_path / "list.json", {"training": [labelled], "validation": [labelled, {"image": "b.nii"}], "testing": []})
    assert split_entries(datalist, tmp_path, "training") == [{"image": f"{tmp_path}/a.nii", "label": f"{tmp_path}/a_seg.nii"}]
    with fails(f"{datalist}: {tmp_path}/b.nii under 'validation' has no label"):
        split_entries(datalist, tmp_path, "validation")
    for split in ("testing", "test"):
        near = " Did you mean testing?"
        with fails(f"{datalist}: no scans under '{split}'; it has training, validation, testing.{near}"):
            split_entries(datalist, tmp_path, split)


def test_training_entries(tmp_path):
    def cohort(name: str, sources: dict[str, str]) -> Path:
        entries = [{"image": f"{case}.nii", "label": f"{case}_seg.nii", **({"source": s} if s else {})} for case, s in sources.items()]
        touch(tmp_path / name, *[e[k] for e in entries for k in ("image", "label")])
        write(tmp_path / name / "datalist.json", {"training": entries, "validation": []})
        return tmp_path / name

    def cases(**options) -> list[str]:
        entries = training_entries(first / "datalist.json", first, **options)
        return [f"{Path(e['image']).parent.name}/{case_name(e['label'])[:1]}" for e in entries]

    first, second, third = cohort("x", {"a": "site", "b": ""}), cohort("y", {"c": "phantom"}), cohort("z", {"a": "site"})
    assert cases() == ["x/a", "x/b"]
    assert cases(also=[second, str(third)]) == ["x/a", "x/b", "y/c", "z/a"]
    assert cases(also=[second, third], repeat={"site": 3, "phantom": 2}) == ["x/a"] * 3 + ["x/b"] + ["y/c"] * 2 + ["z/a"] * 3
    assert cases(also=[second], repeat={"site": 0}) == ["x/b", "y/c"]
    assert cases(repeat=None) == cases(repeat={})
    with fails("repeat: whole numbers are needed, got {'site': 0.5}"):
        cases(repeat={"site": 0.5})
    with fails("repeat: no training scan has the source else, other; there is phantom, site"):
        training_entries(second / "datalist.json", second, [third], {"site": 2, "other": 2, "else": 2})
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / 'datalist.json'))}: no such datalist"):
        cases(also=[tmp_path])
    write(third / "datalist.json", {"validation": [{"image": "a.nii", "label": "a_seg.nii"}]})
    with fails(f"{third / 'datalist.json'}: no scans under 'training'; it has validation."):
        cases(also=[third])


def test_a_patient_in_two_splits_is_not_trained_on(tmp_path):
    touch(tmp_path, "a.nii", "b.nii", "c.nii", "seg.nii")
    a, b, c = ({"image": f"{name}.nii", "label": "seg.nii", "patient": patient} for name, patient in zip("abc", ("p1", "p1", "p2")))
    datalist = write(tmp_path / "list.json", {"training": [a, c], "testing": [b]})
    problem = f"{tmp_path}/a.nii: patient p1 is in the splits training and testing. Keep a patient's scans in one split."
    with fails(f"{datalist}: {problem}"):
        training_entries(datalist, tmp_path)
    write(datalist, {"training": [a, b], "testing": [c], "a_part": [a]})
    assert len(training_entries(datalist, tmp_path)) == 2


@pytest.mark.parametrize("key", ["image", "label"])
def test_no_path_leads_out_of_dataset_dir(tmp_path, key):
    data = touch(tmp_path / "data", "in/a.nii", "in/..b.nii")
    touch(tmp_path, "out.nii", "data_too/a.nii")
    (data / "link.nii").symlink_to(tmp_path / "out.nii")
    inside = {"image": "in/a.nii", "label": "in/..b.nii"}
    datalist = tmp_path / "list.json"
    for path in ("link.nii", "in/../link.nii", str(data / "in" / "a.nii")):  # who can link within the folder, owns it
        write(datalist, {"training": [{**inside, key: path}]})
        assert len(read_datalist(datalist, data)["training"]) == 1
    for path in ("../out.nii", "in/../../out.nii", str(tmp_path / "out.nii"), "../data_too/a.nii"):
        write(datalist, {"training": [{**inside, key: path}]})
        resolved = os.path.normpath(data / path)
        message = f"{datalist}: {key} {resolved} lies outside dataset_dir ({data}). Set --allow_outside True if it may."
        with fails(message):
            split_entries(datalist, data, "training")
        with fails(message):
            inference_entries(data, datalist)
        assert read_datalist(datalist, data, allow_outside="True")["training"][0][key] == resolved
        assert len(inference_entries(data, datalist, allow_outside=True)) == 1


# what to segment


def test_inference_entries_take_image_before_datalist_before_folder(tmp_path, monkeypatch):
    data = touch(tmp_path / "data", "a.nii", "a_seg.nii", "b.nii", "c.nii")
    one = touch(tmp_path, "other.mha") / "other.mha"
    datalist = write(
        tmp_path / "list.json", {"training": [{"image": "a.nii", "label": "a_seg.nii", "labelled": [20]}], "testing": [{"image": "b.nii"}]}
    )
    assert inference_entries(data, datalist, one) == [{"image": str(one)}]
    assert inference_entries(data, datalist) == [{"image": f"{data}/a.nii"}, {"image": f"{data}/b.nii"}]  # no label, no list of labels
    assert inference_entries(data, datalist, split="testing") == [{"image": f"{data}/b.nii"}]
    assert inference_entries(data) == [{"image": f"{data}/{name}.nii"} for name in "abc"]
    monkeypatch.chdir(tmp_path)
    assert inference_entries("data") == inference_entries(data)  # absolute
    assert inference_entries("nowhere", image="other.mha") == [{"image": str(one)}]


def test_inference_entries_take_a_dicom_folder(tmp_path):
    touch(tmp_path, "series.1/IM1")
    assert inference_entries("nowhere", image=tmp_path / "series.1") == [{"image": f"{tmp_path}/series.1"}]
    assert inference_entries(tmp_path / "series.1") == [{"image": f"{tmp_path}/series.1"}]


def test_inference_entries_errors(tmp_path):
    touch(tmp_path, "a.nii")
    datalist = write(tmp_path / "list.json", {"training": [{"image": "a.nii"}], "validation": []})
    with fails(f"{tmp_path}/b.nii: no such file. --image takes one scan or a folder with a DICOM series."):
        inference_entries(tmp_path, datalist, tmp_path / "b.nii")
    with fails(f"{datalist}: no split 'test'; it has training, validation."):
        inference_entries(tmp_path, datalist, split="test")
    with pytest.raises(UserError, match="no such datalist"):
        inference_entries(tmp_path, tmp_path / "no.json")


def test_a_listed_scan_that_is_missing_costs_itself_only(tmp_path):
    touch(tmp_path, "a.nii")
    datalist = write(tmp_path / "list.json", {"training": [{"image": "b.nii"}, {"image": "a.nii"}], "testing": [{"image": "a.nii"}]})
    assert inference_entries(tmp_path, datalist) == [{"image": f"{tmp_path}/b.nii"}, {"image": f"{tmp_path}/a.nii"}]
    (tmp_path / "a.nii").unlink()
    with fails(f"{datalist}: {tmp_path}/b.nii does not exist, nor does any other. Is dataset_dir ({tmp_path}) right?"):
        inference_entries(tmp_path, datalist)


def test_scans_of_one_stem_in_a_folder_are_twins(tmp_path):
    touch(tmp_path, "a.nii", "a.nii.gz", "b.mha", "c.nii", "x/a.mha", "s.nii", "t.nii", "t/note.txt")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "IM1").write_bytes(b"\0" * 128 + b"DICM")
    names = ("a.nii", "a.nii.gz", "b.mha", "c.nii", "x/a.mha", "s.nii", "s", "t.nii")
    assert [name for name in names if has_twin(tmp_path / name)] == ["a.nii", "a.nii.gz", "s.nii"]


def test_inference_entries_of_an_empty_split(tmp_path):
    datalist = write(touch(tmp_path, "a.nii") / "list.json", {"training": [{"image": "a.nii"}], "validation": []})
    with pytest.raises(UserError, match="validation"):
        inference_entries(tmp_path, datalist, split="validation")


def test_a_split_needs_a_datalist(tmp_path):
    with fails("--split testing picks a part of a datalist: set --datalist too"):
        inference_entries(tmp_path, split="testing")


def test_write_datalist_keeps_order_and_umlauts(tmp_path):
    splits = {"training": [{"image": "Müller 1.nii", "labelled": [20]}], "testing": []}
    write_datalist(splits, tmp_path / "x" / "list.json")
    assert json.loads((tmp_path / "x" / "list.json").read_text(encoding="utf-8")) == splits
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["list.json"]


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


def test_a_folder_of_files_is_no_image(tmp_path):
    touch(tmp_path, "a.nii.gz")
    with fails(f"{tmp_path}: a folder without a DICOM series. --image takes one scan; set --dataset_dir for a folder of scans."):
        inference_entries(tmp_path, image=tmp_path)


def test_a_series_without_preambles_is_an_image(tmp_path):
    folder = write_series(tmp_path / "a", [0, 5])
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[content.index(b"\x08\x00\x16\x00") :])
    assert not is_dicom_folder(folder)
    assert inference_entries("nowhere", image=folder) == [{"image": str(folder)}]
    assert read_volume(folder).data.shape == (4, 5, 2)


def test_a_folder_that_cannot_be_seen_is_left_to_the_reader(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", closed)
    assert inference_entries("nowhere", image=tmp_path) == [{"image": str(tmp_path)}]
    with fails(f"{tmp_path}: cannot be read ([Errno 13] Permission denied: '{tmp_path}'). Export or download it again."):
        read_volume(tmp_path)
