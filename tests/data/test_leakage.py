"""One patient, or one scan, in two splits: of a datalist, or of those of several folders."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from conftest import fails, touch

from scripts.common.errors import UserError
from scripts.data.datalist import training_entries
from scripts.data.leakage import patients_in_two_splits


def entry(image: str, patient: str | int | None = None) -> dict:
    return {"image": image, "label": "l.nii.gz"} | ({} if patient is None else {"patient": patient})


def cohort(folder: Path, **splits: list[dict]) -> Path:
    """A folder with a datalist; every file that is not there yet holds its own path."""
    for name in {"l.nii.gz", *(e["image"] for entries in splits.values() for e in entries)}:
        if not (folder / name).exists():
            touch(folder, name)
            (folder / name).write_text(str(folder / name))
    (folder / "datalist.json").write_text(json.dumps(splits))
    return folder


@pytest.mark.parametrize(
    ("training", "validation", "who"),
    [
        (entry("a.nii.gz", 1), entry("b.nii.gz", "1"), "patient 1"),
        (entry("a.nii.gz", 0), entry("b.nii.gz", 0), "patient 0"),
        (entry("a.nii.gz", "p"), entry("a.nii.gz", "p"), "patient p"),
        (entry("a.nii.gz"), entry("a.nii.gz"), "the scan"),
        (entry("a.nii.gz", "p"), entry("a.nii.gz"), "the scan"),
        (entry("a.nii.gz", "p"), entry("a.nii.gz", "q"), "the scan"),
        (entry("a.nii.gz"), entry("link.nii.gz"), "the scan"),
    ],
)
def test_one_patient_in_two_splits(tmp_path, training, validation, who):
    (tmp_path / "link.nii.gz").symlink_to("a.nii.gz")
    cohort(tmp_path, training=[training], validation=[validation])
    line = f"{tmp_path}/datalist.json: {tmp_path}/a.nii.gz: {who} is in the splits training and validation. "
    with fails(f"{line}Keep a patient's scans in one split."):
        training_entries(tmp_path / "datalist.json", tmp_path)


def test_every_patient_in_two_splits_is_named(tmp_path):
    splits = {
        "training": [entry("/a.nii", "p"), entry("/b.nii", "p"), entry("/c.nii"), entry("/d.nii", 3), entry("/\0.nii")],
        "validation": [entry("/e.nii", "p"), entry("/f.nii"), entry("/g.nii", "")],
        "testing": [entry("/c.nii"), entry("/h.nii", "3"), entry("/i.nii", "q")],
    }
    assert patients_in_two_splits(splits) == [
        "/a.nii: patient p is in the splits training and validation. Keep a patient's scans in one split.",
        "/d.nii: patient 3 is in the splits training and testing. Keep a patient's scans in one split.",
        "/c.nii: the scan is in the splits training and testing. Keep a patient's scans in one split.",
    ]


@pytest.mark.parametrize("split", ["validation", "testing"])
@pytest.mark.parametrize("kind", ["the file", "a link", "a copy", "a copy of another name"])
def test_a_scan_that_is_held_back_is_not_trained_on_by_also_train_on(tmp_path, split, kind):
    first = cohort(tmp_path / "x", training=[entry("a.nii.gz", "p")], **{split: [entry("b.nii.gz", 7)]})
    second = tmp_path / "y"
    second.mkdir()
    if kind == "the file":
        second = tmp_path / "x" / "part"
        (tmp_path / "x" / "part").symlink_to("../x")
        (tmp_path / "other.json").write_text(json.dumps({"training": [entry("a.nii.gz", "p")], split: [entry("b.nii.gz", 7)]}))
        cohort(first, training=[entry("b.nii.gz", "other name")])
        datalist = tmp_path / "other.json"
    else:
        datalist = first / "datalist.json"
        image = second / "b.nii.gz"
        image.symlink_to(first / "b.nii.gz") if kind == "a link" else image.write_bytes((first / "b.nii.gz").read_bytes())
        cohort(second, training=[entry("c.nii.gz"), entry("b.nii.gz", "8" if "name" in kind else "7")])
    line = (
        f"{second}/b.nii.gz: is trained on in {second}/datalist.json and held back as '{split}' in {datalist}. Leave it out of one of them."
    )
    with fails(line):
        training_entries(datalist, first, also=[second])


def test_equal_headers_are_no_copies(tmp_path):
    """The voxels of MetaImage headers may lie in other files."""
    header = "ObjectType = Image\nNDims = 3\nDimSize = 1 1 1\nElementType = MET_UCHAR\nElementDataFile = T2.raw\n"
    for folder, voxel in (("x", "1"), ("y", "2"), ("z", "1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "T2.mhd").write_text(header)
        (tmp_path / folder / "T2.raw").write_text(voxel)
    first = cohort(tmp_path / "x", training=[entry("a.nii.gz", "p")], validation=[entry("T2.mhd", "q")])
    other = cohort(tmp_path / "y", training=[entry("T2.mhd", "r")])
    assert len(training_entries(first / "datalist.json", first, also=[other])) == 2
    with pytest.raises(UserError, match=r"z/T2\.mhd: is trained on"):
        training_entries(first / "datalist.json", first, also=[cohort(tmp_path / "z", training=[entry("T2.mhd", "r")])])


def test_a_patient_of_the_same_name_in_another_folder_is_a_warning(tmp_path, caplog):
    held = [entry(f"{name}.nii.gz", f"sub-0{name}") for name in range(1, 8)]
    first = cohort(tmp_path / "x", training=[entry("a.nii.gz", "sub-10")], validation=held)
    second = cohort(tmp_path / "y", training=[entry("2.nii.gz", "sub-02"), entry("3.nii.gz", "sub-02"), entry("a.nii.gz", "sub-10")])
    third = cohort(tmp_path / "z", training=[entry(f"{name}.nii.gz", f"sub-0{name}") for name in range(1, 7)])
    other = cohort(tmp_path / "w", training=[entry("2.nii.gz"), entry("x.nii.gz", "")])
    with caplog.at_level(logging.WARNING):
        assert len(training_entries(first / "datalist.json", first, also=[second, third, other])) == 1 + 3 + 6 + 2
    fix = "If they are the same people, leave them out of one of the two."
    reason = f"trains on patients that share their names with patients held back by {first}/datalist.json"
    assert caplog.messages == [
        f"{second}/datalist.json: {reason} (sub-02). {fix}",
        f"{third}/datalist.json: {reason} (sub-01, sub-02, sub-03, sub-04, sub-05, ...). {fix}",
    ]
