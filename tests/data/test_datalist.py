"""Datalists that are read, refused and written, and what to segment."""

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
from scripts.data.find import case_name, is_dicom_folder
from scripts.data.volumes import read_volume


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
    command = f"python -m monai.bundle run prepare --config_file configs/tools.yaml --dataset_dir {tmp_path}"
    with fails(f"{path}: no such datalist. Write one with: {command}"):
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
    with pytest.raises(
        UserError, match=rf"list.json: 'labelled' of {tmp_path}/a.nii: unknown label values \[99\]\. It takes VerSe numbers, or those of"
    ):
        read_datalist(datalist, tmp_path)


def test_a_scheme_that_does_not_exist(tmp_path):
    datalist = write(touch(tmp_path, "a.nii") / "list.json", {"training": [{"image": "a.nii", "label_scheme": "spidre"}]})
    with pytest.raises(UserError, match=rf"^{datalist}: {tmp_path}/a.nii: label scheme 'spidre' does not exist; .* Did you mean spider\?$"):
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
    for split, near in (("testing", ""), ("trainin", " Did you mean training?")):  # the first is there, and empty
        with fails(f"{datalist}: no scans under '{split}'; it has training, validation.{near}"):
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
    with fails("--repeat {'site': 0.5}: a whole number for every source is needed, such as \"{'mine': 3}\""):
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
        assert read_datalist(datalist, data, allow_outside=True)["training"][0][key] == resolved
        assert len(inference_entries(data, datalist, allow_outside=True)) == 1


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


def test_a_pattern_picks_scans(tmp_path):
    data = touch(tmp_path / "T2 data", "a/T1.nii", "a/t2_sag.nii", "b/T2_ax.nii.gz", "b/T2/IM1")
    assert inference_entries(data, pattern="*t2*") == [{"image": f"{data}/{path}"} for path in ("a/t2_sag.nii", "b/T2", "b/T2_ax.nii.gz")]
    assert inference_entries(data, pattern="?/T[12].nii") == [{"image": f"{data}/a/T1.nii"}]
    datalist = write(tmp_path / "list.json", {"testing": [{"image": "a/T1.nii"}, {"image": "a/t2_sag.nii"}]})
    assert inference_entries(data, datalist, pattern="*SAG*") == [{"image": f"{data}/a/t2_sag.nii"}]
    why = "fits none of 4 scans, such as a/T1.nii. It takes * and ?, as '*T2*'."
    with fails(f"--pattern stir: {why}"):
        inference_entries(data, pattern="stir")


def test_inference_entries_take_a_dicom_folder(tmp_path):
    touch(tmp_path, "series.1/IM1")
    assert inference_entries("nowhere", image=tmp_path / "series.1") == [{"image": f"{tmp_path}/series.1"}]
    assert inference_entries(tmp_path / "series.1") == [{"image": f"{tmp_path}/series.1"}]


def test_a_folder_of_labels_holds_no_scans(tmp_path):
    touch(tmp_path, "images/a.nii", "labels/a.nii")
    with fails(f"{tmp_path}/labels: no scans found, only labels beside a folder of images. --image takes one of the files."):
        inference_entries(tmp_path / "labels")
    assert inference_entries(tmp_path) == [{"image": f"{tmp_path}/images/a.nii"}]


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
