"""A datalist of a folder: scans paired with their labels, patients kept together."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import fails, labelled, touch

from scripts.common.errors import CallError, UserError
from scripts.common.files import sha256_of
from scripts.data.check_labels import check_labels
from scripts.data.datalist import split_entries
from scripts.data.masks import write_label_map
from scripts.data.own_masks import signature
from scripts.tools.prepare import prepare

pytestmark = pytest.mark.usefixtures("no_copies")


def site(root: Path, patients: int = 8) -> Path:
    """Write two labelled scans per patient, and one scan without a label."""
    for patient in range(patients):
        for contrast in ("T1w", "T2w"):
            values = np.zeros((2, 2, 3), np.uint8)
            values[0, 0] = (20, 120, 26 if contrast == "T2w" else 0)
            for postfix, data in (("", values.astype(np.float32)), ("_seg", values)):
                path = root / "site" / f"sub-{patient:02}_ses-{contrast}_{contrast}{postfix}.nii"
                path.parent.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(data, np.diag([4, 1, 1, 1])), path)
    touch(root, "site/unlabelled_T2w.nii")
    return root


def test_masks_that_the_network_has_drawn_are_no_labels(tmp_path, capsys):
    """They are labels once somebody has edited or renamed them, and a label of another name counts."""
    values = np.zeros((2, 2, 3), np.uint8)
    values[0, 0] = (20, 120, 26)
    for stem in ("a_T2w", "b_T2w", "c_T2w", "d_T2w"):
        for name, data in ((stem, values.astype(np.float32)), (f"{stem}_seg", values)):
            nib.save(nib.Nifti1Image(data, np.diag([4, 1, 1, 1])), tmp_path / f"{name}.nii.gz")
        mask = tmp_path / f"{stem}_seg.nii.gz"
        report = {"mask_sha256": "of another file" if stem == "b_T2w" else sha256_of(mask), **({"renamed": {}} if stem == "c_T2w" else {})}
        (tmp_path / f"{stem}_seg.json").write_text(json.dumps(report))
    nib.save(nib.Nifti1Image(values, np.diag([4, 1, 1, 1])), tmp_path / "d_seg.nii.gz")
    nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([4, 1, 1, 1])), tmp_path / "e_T2w.nii.gz")
    write_label_map(values, np.diag([4, 1, 1, 1]), tmp_path / "e_T2w_seg.nii.gz", signature(values))  # its report was removed
    prepare(tmp_path, tmp_path / "list.json", validation_fraction=0.3, testing_fraction=0.3)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "  2 scans without a label: a_T2w.nii.gz, ...",
        "  3 scans with an uncorrected mask of this bundle, which is not taken as a label",
    ]
    entries = chain(*json.loads((tmp_path / "list.json").read_text()).values())
    labels = {e["image"].removesuffix("_T2w.nii.gz"): e["label"] for e in entries}
    assert labels == {"b": "b_T2w_seg.nii.gz", "c": "c_T2w_seg.nii.gz", "d": "d_seg.nii.gz"}


def test_spider_numbers_that_only_the_report_explains(tmp_path):
    """With six lumbar vertebrae the lowest, 1, is L6; a training, which reads no reports, would take it for L5."""
    values = np.zeros((2, 2, 3), np.uint8)
    values[0, 0] = (2, 1, 201)
    for stem in "ab":
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([4, 1, 1, 1])), tmp_path / f"{stem}.nii.gz")
        nib.save(nib.Nifti1Image(values, np.diag([4, 1, 1, 1])), tmp_path / f"{stem}_seg.nii.gz")
    rows = [{"name": name, "value": value} for name, value in (("L5", 2), ("L6", 1), ("L6/S1", 201))]
    (tmp_path / "a_seg.json").write_text(json.dumps({"label_scheme": "spider", "structures": rows, "mask_sha256": "edited since"}))
    line = f"{tmp_path}/a_seg.nii.gz: its report names other levels than its numbers of spider do. Write it in the numbers of verse."
    options = {"validation_fraction": 0.0, "testing_fraction": 0.0, "label_scheme": "spider"}
    with fails(line):
        prepare(tmp_path, tmp_path / "list.json", **options)
    (tmp_path / "a_seg.json").unlink()
    prepare(tmp_path, tmp_path / "list.json", **options)
    assert json.loads((tmp_path / "list.json").read_text())["training"][0]["labelled"] == [23, 24, 124]


def patients_of(datalist: Path) -> dict[str, list[str]]:
    return {split: sorted({e["patient"] for e in entries}) for split, entries in json.loads(datalist.read_text()).items()}


def test_prepare(tmp_path, capsys):
    root, datalist = site(tmp_path / "data"), tmp_path / "new folder" / "list.json"
    assert prepare(root, datalist, validation_fraction=0.25, testing_fraction=0.1) == datalist
    assert capsys.readouterr().out.splitlines() == [
        f"{datalist}: 8 patients, sub-00, sub-01, sub-02, sub-03, ...",
        "  training: 5 patients with 10 scans",
        "  validation: 2 patients with 4 scans",
        "  testing: 1 patient with 2 scans",
        "  1 scan without a label: site/unlabelled_T2w.nii",
    ]
    splits = patients_of(datalist)
    assert list(splits) == ["training", "validation", "testing"]
    assert sorted(chain(*splits.values())) == [f"sub-{i:02}" for i in range(8)]  # every patient in one split only
    content = json.loads(datalist.read_text())
    assert sum(map(len, content.values())) == 16
    for entry in chain(*content.values()):
        stem = entry["image"].removesuffix(".nii")
        assert entry == {
            "image": f"site/{entry['patient']}_ses-{stem[-3:]}_{stem[-3:]}.nii",
            "label": stem + "_seg.nii",
            "source": "site",
            "labelled": [20, 26, 120] if stem.endswith("T2w") else [20, 120],
            "patient": entry["patient"],
            "label_scheme": "verse",
        }
    assert len(split_entries(datalist, root, "validation")) == 4
    assert [p.name for p in datalist.parent.iterdir()] == ["list.json"]


def test_prepare_repeats_itself_for_the_same_seed(tmp_path):
    root = site(tmp_path / "data")
    lists = [prepare(root, tmp_path / f"{i}.json", 0.3, 0.3, seed=seed) for i, seed in enumerate((0, 0, 1, 2, 3))]
    splits = [json.dumps(patients_of(path)) for path in lists]
    assert lists[0].read_bytes() == lists[1].read_bytes()
    assert len(set(splits)) > 2


def test_prepare_without_a_test_split(tmp_path):
    datalist = prepare(site(tmp_path / "data", 2), tmp_path / "list.json", 0.1, 0)
    assert {split: len(names) for split, names in patients_of(datalist).items()} == {"training": 1, "validation": 1, "testing": 0}


def test_prepare_reads_label_folders_once(tmp_path):
    for i in range(3):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(np.full((2, 2, 2), 20, np.uint8), np.eye(4)), tmp_path / folder / f"{i}_t2.nii")
    datalist = prepare(tmp_path, tmp_path / "list.json")
    entries = chain(*json.loads(datalist.read_text()).values())
    assert sorted((e["image"], e["label"], e["patient"], e["source"]) for e in entries) == [
        (f"images/{i}_t2.nii", f"masks/{i}_t2.nii", str(i), tmp_path.name) for i in range(3)
    ]


def test_prepare_reads_other_numbers(tmp_path):
    for i in range(3):
        for name in (f"{i}_t2.nii", f"{i}_seg.nii"):
            nib.save(nib.Nifti1Image(np.full((2, 2, 2), 5, np.uint8), np.eye(4)), tmp_path / name)
    prepare(tmp_path, tmp_path / "list.json", label_scheme="spider")
    assert {tuple(e["labelled"]) for e in chain(*json.loads((tmp_path / "list.json").read_text()).values())} == {(20,)}  # L1
    (tmp_path / "0_seg.nii").write_text("no label")
    with pytest.raises(UserError, match=rf"^{tmp_path}/0_seg.nii: cannot be read [^\n]*$"):
        prepare(tmp_path, tmp_path / "list.json", overwrite=True, label_scheme="spider")


def test_prepare_keeps_an_existing_datalist(tmp_path):
    datalist = tmp_path / "list.json"
    datalist.write_text("mine")
    with fails(f"{datalist}: exists already; set --overwrite True to replace it"):
        prepare(site(tmp_path / "data", 3), datalist)
    assert datalist.read_text() == "mine"
    prepare(tmp_path / "data", datalist, overwrite=True, labelled=[25])
    assert all(25 in e["labelled"] for e in json.loads(datalist.read_text())["training"])


def test_prepare_takes_another_pattern(tmp_path):
    datalist = prepare(site(tmp_path / "data", 3), tmp_path / "list.json", patient_pattern=r"sub-(\d+)_")
    assert sorted(chain(*patients_of(datalist).values())) == ["00", "01", "02"]


def test_labels_of_bids(tmp_path):
    """BIDS keeps labels in a tree of their own; the source is the data set."""
    image = nib.Nifti1Image(np.full((2, 2, 2), 20, np.uint8), np.eye(4))
    root = tmp_path / "spines"
    for i, word in enumerate(("seg", "dseg", "label-spine_dseg", "label-spine_desc-manual_seg")):
        touch(root, f"derivatives/labels/sub-{i}/ses-1/anat/sub-{i}_T2w_label-SC_seg.nii")  # the cord
        for name in (f"sub-{i}/ses-1/anat/sub-{i}_T2w", f"derivatives/labels/sub-{i}/ses-1/anat/sub-{i}_T2w_{word}"):
            nib.save(image, touch(root, f"{name}.nii") / f"{name}.nii")
    prepare(root, root / "list.json")
    entries = list(chain(*json.loads((root / "list.json").read_text()).values()))
    assert {e["patient"] for e in entries} == {f"sub-{i}" for i in range(4)}
    assert {e["source"] for e in entries} == {"spines"}
    assert all(e["label"].startswith("derivatives/labels/") and "SC" not in e["label"] for e in entries)


def test_labels_outside_the_folder(tmp_path):
    for folder in ("images", "labels"):
        nib.save(nib.Nifti1Image(np.full((2, 2, 2), 20, np.uint8), np.eye(4)), touch(tmp_path, f"{folder}/a.nii"))
    images = tmp_path / "images"
    with fails(f"{images}: its labels lie outside it, in {tmp_path}/labels. Set --dataset_dir to the folder that holds both."):
        prepare(images, tmp_path / "list.json")


def test_an_empty_label(tmp_path):
    """An empty label is refused, as a training would refuse it too."""
    root = labelled(tmp_path, "a", "b")
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), root / "a_seg.nii")
    with fails(f"{root}/a_seg.nii: no foreground, all values are 0. Label it, or leave the scan out."):
        prepare(root, root / "list.json", testing_fraction=0.0, labelled=[20])
    with fails(f"{root}/a_seg.nii: no foreground, all values are 0. Label it, or leave the scan out."):
        check_labels([{"image": root / "a.nii", "label": root / "a_seg.nii", "labelled": [20]}])


def test_prepare_counts_and_names_scans_without_a_label(tmp_path, capsys):
    touch(labelled(tmp_path, "a", "b", "c"), "x/d.nii", "e.nii")
    prepare(tmp_path, tmp_path / "list.json")
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'list.json'}: 3 patients, a, b, c",
        *(f"  {split}: 1 patient with 1 scan" for split in ("training", "validation", "testing")),
        "  2 scans without a label: e.nii, ...",
    ]
    with fails(f"{labelled(tmp_path / 'one', 'a')}: 1 patient with labels (a), 3 are needed for these splits. Is --patient_pattern right?"):
        prepare(tmp_path / "one", tmp_path / "one.json")
    with fails(f"{tmp_path / 'x'}: 1 scan, none with a label. A label of a.nii.gz is a_seg.nii.gz, or labels/a.nii.gz beside images/."):
        prepare(tmp_path / "x", tmp_path / "x.json")


def test_all_bad_labels_are_named(tmp_path):
    root = site(tmp_path / "data", 4)
    labels = sorted((root / "site").glob("*_seg.nii"))
    unknown_type = bytearray(labels[4].read_bytes())
    unknown_type[70:72] = (999).to_bytes(2, "little")
    labels[4].write_bytes(unknown_type)
    labels[0].write_text("no label")
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), 77, np.uint8), np.eye(4)), labels[1])
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 3), np.uint8), np.diag([4, 1, 1, 1])), labels[2])
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), 20, np.uint8), np.diag([4, 1, 1, 1])), labels[3])
    with pytest.raises(UserError) as error:
        prepare(root, tmp_path / "list.json")
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(label) for label in labels[:5]]
    assert "not on the grid of" in lines[3]
    assert lines[2] == f"{labels[2]}: no foreground, all values are 0. Label it, or leave the scan out."
    assert not (tmp_path / "list.json").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    root = site(tmp_path / "data", 3)
    (tmp_path / "file").touch()
    with pytest.raises(CallError, match=rf"^{tmp_path}/file: cannot be written to .*Set --datalist to"):
        prepare(root, tmp_path / "file" / "list.json")


def test_prepare_errors(tmp_path):
    root = site(tmp_path / "data", 2)
    with fails(f"{root}: 2 patients with labels (sub-00, sub-01), 3 are needed for these splits. Is --patient_pattern right?"):
        prepare(root, tmp_path / "list.json")
    with fails(f"{root}/site/sub-00_ses-T1w_T1w.nii: patient_pattern 'case(.)' does not match its name or its path from dataset_dir"):
        prepare(root, tmp_path / "list.json", patient_pattern="case(.)")
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), 77, np.uint8), np.eye(4)), root / "site" / "sub-00_ses-T1w_T1w_seg.nii")
    with pytest.raises(UserError, match=rf"^{root}/site/sub-00_ses-T1w_T1w_seg.nii: unknown label values \[77\]"):
        prepare(root, tmp_path / "list.json")
    touch(tmp_path / "bare", "a.nii", "b.nii")
    hint = "A label of a.nii.gz is a_seg.nii.gz, or labels/a.nii.gz beside images/."
    with fails(f"{tmp_path}/bare: 2 scans, none with a label. {hint}"):
        prepare(tmp_path / "bare", tmp_path / "list.json")
    assert not (tmp_path / "list.json").exists()


def test_prepare_explains_a_pattern_without_a_group(tmp_path):
    root = site(tmp_path / "data", 3)
    with pytest.raises(UserError, match="patient_pattern"):
        prepare(root, tmp_path / "list.json", patient_pattern=r"sub-\d+")
    with pytest.raises(UserError, match=r"^patient_pattern '\(sub' is not a regular expression \(missing \)"):
        prepare(root, tmp_path / "list.json", patient_pattern="(sub")
    with pytest.raises(UserError, match=r"patient_pattern .* does not match its name"):
        prepare(root, tmp_path / "list.json", patient_pattern="(case)?.*")
