"""Exploration of a dataset: hand-computed values, and every kind of problem by its message."""

from __future__ import annotations

import csv
import json
import re
from itertools import chain

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import UserError
from scripts.labels import encode, label_table
from scripts.tools import explore as module
from scripts.tools.explore import Scan, anatomical_order, explore, run

SPACING = (4.0, 0.5, 1.5)  # 3 mm3 per voxel
PIR = np.array([[0, 0, 4.0, -9], [-0.5, 0, 0, 30], [0, -1.5, 0, 80], [0, 0, 0, 1]])  # array axes to posterior, inferior, right
SHAPE = (12, 10, 6)


def values(**boxes: int) -> np.ndarray:
    """Return a label map with voxel counts by VerSe number: `v20=50` for 50 voxels of L1."""
    label = np.zeros(SHAPE, np.int16)
    start = 0
    for name, count in boxes.items():
        label.ravel()[start : start + count] = int(name[1:])
        start += count
    return label


def save(path, array, affine=PIR):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def scan_array(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.int16)


@pytest.fixture
def dataset(tmp_path):
    """Write two good scans of source `a` and one of `b`."""
    root = tmp_path / "data"
    ramp = np.arange(720, dtype=np.int16).reshape(SHAPE)
    save(root / "a" / "p1_T2w.nii.gz", ramp)
    save(root / "a" / "p1_seg.nii.gz", values(v20=50, v120=10))
    save(root / "a" / "p2_T2w.nii.gz", scan_array(2))
    save(root / "a" / "p2_seg.nii.gz", values(v20=70))
    save(root / "b" / "p3_T1w.nii.gz", scan_array(3).astype(np.float32), np.diag([*SPACING, 1]))
    save(root / "b" / "p3_seg.nii.gz", values(v26=100), np.diag([*SPACING, 1]))
    return root


def entry(image: str, source: str, labelled: list[int], patient: str) -> dict:
    label = image.rsplit("_", 1)[0] + "_seg.nii.gz"
    return {"image": image, "label": label, "source": source, "labelled": labelled, "patient": patient}


@pytest.fixture
def splits():
    return {
        "training": [entry("a/p1_T2w.nii.gz", "a", [20, 120], "p1"), entry("a/p2_T2w.nii.gz", "a", [20, 21], "p2")],
        "validation": [entry("b/p3_T1w.nii.gz", "b", [26], "p3")],
    }


@pytest.fixture
def check(dataset, tmp_path, capsys):
    """Return a function that writes a datalist, explores it and returns the lines of the problems."""

    def explored(splits: dict) -> list[str]:
        datalist = tmp_path / "datalist.json"
        datalist.write_text(json.dumps(splits))
        count = explore(dataset, tmp_path / "out", datalist)
        lines = capsys.readouterr().out.splitlines()
        start = next(i for i, line in enumerate(lines) if re.fullmatch(r"\d+ problems?", line))
        found = [line.strip() for line in lines[start + 1 : start + 1 + count]]
        assert lines[start].startswith(f"{count} problem")
        assert all(found)
        assert lines[start + 1 + count] == ""
        return found

    return explored


def test_values_of_good_scans(check, splits, tmp_path):
    assert check(splits) == []
    with (tmp_path / "out" / "explore.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [r["case"] for r in rows] == ["p1_T2w", "p2_T2w", "p3_T1w"]
    first = rows[0]
    assert {k: first[k] for k in ("split", "source", "shape", "spacing_mm", "axes", "dtype")} == {
        "split": "training", "source": "a", "shape": "12x10x6", "spacing_mm": "0.5x1.5x4", "axes": "PIR", "dtype": "int16",
    }  # fmt: skip
    assert [float(first[k]) for k in ("min", "p1", "median", "p99", "max")] == pytest.approx([0, 7.19, 359.5, 711.81, 719])
    assert (first["L1"], first["L1/L2"], first["L2"], first["problems"]) == ("0.150", "0.030", "", "")  # 50 and 10 voxels of 3 mm3
    assert (rows[2]["S1"], rows[2]["axes"], rows[2]["dtype"]) == ("0.300", "RAS", "float32")
    assert (tmp_path / "out" / "explore.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["explore.csv", "explore.png"]


def test_printed_totals(dataset, splits, tmp_path, capsys):
    (tmp_path / "d.json").write_text(json.dumps(splits))
    run(str(dataset), str(tmp_path / "out"), str(tmp_path / "d.json"))
    out = capsys.readouterr().out
    cells = [line.split() for line in out.splitlines()]
    assert ["scans", "training", "validation", "all"] in cells
    assert ["a", "2", "0", "2"] in cells
    assert ["b", "0", "1", "1"] in cells
    assert ["all", "2", "1", "3"] in cells
    assert "axes        PIR 2, RAS 1" in out
    assert "spacing_mm  0.5..4 x 0.5..1.5 x 1.5..4" in out
    assert "shape       12 x 10 x 6" in out
    assert ["L1", "2", "0.18", "0.04", "0.15", "0.21"] in cells  # 0.15 and 0.21: sd 0.0424
    assert ["S1", "1", "0.30", "-", "0.30", "0.30"] in cells
    assert "0 problems" in out


def one(problems: list[str], *fragments: str) -> None:
    assert len(problems) == 1, problems
    for fragment in fragments:
        assert fragment in problems[0]


def test_unreadable_images(check, splits, dataset):
    path = dataset / "a" / "p1_T2w.nii.gz"
    whole = path.read_bytes()
    for content, fragment in (
        (whole[: len(whole) // 2], "cannot be read ("),
        (b"", "the file is empty (0 bytes)"),
        (b"hello", "cannot be read ("),
    ):
        path.write_bytes(content)
        one(check(splits), f"{path}: ", fragment, "Export or download it again.")


def test_grids_that_no_scan_has(check, splits, dataset, tmp_path):
    path = dataset / "a" / "p1_T2w.nii.gz"
    voxels = nib.load(path).get_fdata().astype(np.int16)
    save(path, voxels, np.diag([20.0, 20, 20, 1]))
    assert any(f"{path}: its voxels measure 20 x 20 x 20 mm" in line for line in check(splits))
    path.unlink()
    path = path.with_name("p1_T2w.nii")
    save(path, voxels)
    content = bytearray(path.read_bytes())
    content[280:296] = np.full(4, np.nan, np.float32).tobytes()  # srow_x
    path.write_bytes(content)
    splits["training"][0]["image"] = "a/p1_T2w.nii"
    assert any("the orientation in its header (affine) holds NaN" in line for line in check(splits))


def test_unreadable_label_keeps_the_image(check, splits, dataset, tmp_path):
    path = dataset / "a" / "p1_seg.nii.gz"
    path.write_text("hello")
    one(check(splits), f"{path}: cannot be read (")
    with (tmp_path / "out" / "explore.csv").open(newline="") as handle:
        first = next(csv.DictReader(handle))
    assert (first["shape"], first["L1"], first["problems"][:5]) == ("12x10x6", "", str(path)[:5])


def test_label_on_another_grid(check, splits, dataset):
    path = dataset / "a" / "p1_seg.nii.gz"
    moved = PIR.copy()
    moved[2, 3] += 0.25
    save(path, values(v20=50), moved)
    one(check(splits), f"{path}: not on the grid of {dataset / 'a' / 'p1_T2w.nii.gz'} (affines that differ by up to 0.25 mm)", "Resample")
    moved[2, 3] -= 0.2495
    save(path, values(v20=50), moved)
    assert check(splits) == []
    save(path, values(v20=50)[:-1])
    one(check(splits), "(shape (12, 10, 6) and (11, 10, 6))")


def test_label_values(check, splits, dataset):
    path = dataset / "a" / "p1_seg.nii.gz"
    save(path, values(v20=50, v77=3))
    one(check(splits), f"{path}: unknown label values [77]")
    save(path, values(v20=50).astype(np.float32) + 0.5)
    one(check(splits), f"{path}: fractional label values", "nearest neighbour")
    save(path, values())
    one(check(splits), f"{path}: no foreground, all values are 0. Label it, or leave the scan out.")
    save(path, values(v20=50, v21=5, v124=2))
    one(check(splits), f"{path}: holds 21 (L2), 124 (L5/S1), which 'labelled' does not list. Add to 'labelled' or erase.")


def test_labels_that_are_more_than_bodies(check, splits, dataset, monkeypatch):
    monkeypatch.setattr("scripts.tools.explore.MAX_BODY_ML", 0.15)  # 50 voxels of 3 mm3
    save(dataset / "a" / "p1_seg.nii.gz", values(v20=51, v120=90))
    lines = [line for line in check(splits) if "p1" in line]
    fix = "Erase arches, and the sacrum below its first segment."
    assert lines == [f"{dataset / 'a' / 'p1_seg.nii.gz'}: larger than a vertebral body: L1 (0 ml). {fix}"]


def test_an_empty_list_of_labels_says_nothing(check, splits, dataset):
    entry = next(e for e in chain(*splits.values()) if e["image"] == "a/p1_T2w.nii.gz")
    entry["labelled"] = []
    save(dataset / "a" / "p1_seg.nii.gz", values(v20=50, v21=5))
    assert check(splits) == []


def test_splits_and_duplicates(check, splits, dataset):
    added = {**splits["validation"][0], "image": "b/p4_T1w.nii.gz"}
    splits["validation"].append({**added, "patient": "p1"})
    save(dataset / "b" / "p4_T1w.nii.gz", scan_array(4), np.diag([*SPACING, 1]))
    one(check(splits), f"{dataset / 'a' / 'p1_T2w.nii.gz'}: patient p1 is in the splits training and validation. Keep")
    splits["validation"][-1] = splits["validation"][0]
    one(check(splits), f"{dataset / 'b' / 'p3_T1w.nii.gz'}: listed twice. Remove one entry.")
    splits["validation"][-1] = {**added, "patient": "p4"}
    save(dataset / "b" / "p4_T1w.nii.gz", scan_array(2), np.diag([*SPACING, 1]))
    one(check(splits), f"{dataset / 'b' / 'p4_T1w.nii.gz'}: the same voxels as {dataset / 'a' / 'p2_T2w.nii.gz'}. Keep one of them.")


def test_a_datalist_that_train_refuses(check, splits, dataset):
    one(check({"train": splits["training"], "validation": splits["validation"]}), "no split 'training': it has train, validation. Rename")
    del splits["training"][1]["label"]
    one(check(splits), f"{dataset / 'a' / 'p2_T2w.nii.gz'}: no label, under 'training'")


def test_intensities(check, splits, dataset):
    path = dataset / "b" / "p3_T1w.nii.gz"
    array = scan_array(3).astype(np.float32)
    array[0, 0, :2] = np.nan
    save(path, array, np.diag([*SPACING, 1]))
    one(check(splits), f"{path}: 2 voxels are not finite numbers.")
    save(path, np.full(SHAPE, 7, np.float32), np.diag([*SPACING, 1]))
    one(check(splits), f"{path}: all voxels have the value 7.")


def test_one_bad_file_does_not_stop_the_rest(check, splits, dataset):
    (dataset / "a" / "p1_T2w.nii.gz").write_bytes(b"")
    save(dataset / "a" / "p2_seg.nii.gz", values())
    (dataset / "b" / "p3_seg.nii.gz").write_bytes(b"x")
    found = check(splits)
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in found] == ["p1_T2w.nii.gz", "p2_seg.nii.gz", "p3_seg.nii.gz"]


def test_run_fails_after_writing(dataset, tmp_path):
    save(dataset / "a" / "p2_seg.nii.gz", values())
    with pytest.raises(UserError, match=r"1 problem in .*data, listed above"):
        run(dataset, tmp_path / "out")
    assert (tmp_path / "out" / "explore.csv").is_file()
    assert (tmp_path / "out" / "explore.png").is_file()


def test_folder_without_datalist(dataset, tmp_path, capsys):
    save(dataset / "c" / "images" / "p5.nii.gz", scan_array(5))
    save(dataset / "c" / "labels" / "p5.nii.gz", values(v21=10))
    save(dataset / "c" / "p6.nii.gz", scan_array(6))
    assert explore(dataset, tmp_path / "out") == 0
    with (tmp_path / "out" / "explore.csv").open(newline="") as handle:
        rows = {row["case"]: row for row in csv.DictReader(handle)}
    assert sorted(rows) == ["p1_T2w", "p2_T2w", "p3_T1w", "p5", "p6"]
    assert (rows["p1_T2w"]["L1"], rows["p1_T2w"]["source"], rows["p1_T2w"]["split"]) == ("0.150", "a", "-")
    assert (rows["p5"]["L2"], rows["p6"]["label"]) == ("0.030", "")
    assert "p6" in capsys.readouterr().out


def test_folder_of_unlabelled_or_unreadable_scans(tmp_path):
    save(tmp_path / "d" / "p6.nii.gz", scan_array(6))
    assert explore(tmp_path / "d", tmp_path / "out") == 0
    (tmp_path / "d" / "p6.nii.gz").write_bytes(b"")
    assert explore(tmp_path / "d", tmp_path / "out") == 1


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="absent: no such folder"):
        explore(tmp_path / "absent", tmp_path / "out")


def test_anatomical_order():
    names = [label_table()[c].name for c in anatomical_order()]
    assert names[:4] == ["T8", "T8/T9", "T9", "T9/T10"]
    assert names[-6:] == ["L4/L5", "L5", "L5/S1", "L6", "L6/S1", "S1"]
    assert len(names) == len(label_table()) - 1


def test_spread_takes_sources_in_turn():
    scans = [Scan("-", source, f"{source}{i}.nii", None, shape=(1, 1, 1)) for source, n in (("a", 5), ("b", 1), ("c", 3)) for i in range(n)]
    scans[0].shape = ()  # unreadable
    scans[3].volume_ml = {1: 1.0}
    assert [s.image for s in module.spread(scans, 6)] == ["a3.nii", "b0.nii", "c0.nii", "a1.nii", "c1.nii", "a2.nii"]


def test_labels_of_another_scheme_are_drawn_too(dataset, tmp_path):
    for path in dataset.rglob("*_seg.nii.gz"):
        label = nib.load(path)
        save(path, encode(np.asarray(label.dataobj).astype(np.int16)), label.affine)
    assert explore(dataset, tmp_path / "out", label_scheme="channel") == 0
    assert (tmp_path / "out" / "explore.png").is_file()


def test_names_that_look_like_formulas_or_are_no_text(tmp_path, capsys):
    folder = tmp_path / "data" / "$cohort_$\n"
    for name in ("do$llar_$_x", "line\nbreak", "bytes_\udcff"):
        save(folder / f"{name}.nii.gz", scan_array(len(name)))
    assert explore(tmp_path / "data", tmp_path / "out") == 0
    assert "bytes_\\udcff" in capsys.readouterr().out
    with (tmp_path / "out" / "explore.csv").open(newline="", errors="surrogateescape") as handle:
        assert {row["case"] for row in csv.DictReader(handle)} == {"do$llar_$_x", "line\nbreak", "bytes_\udcff"}


def test_a_file_in_the_place_of_the_folder_is_seen_before_scans_are_read(dataset, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"out: cannot be written to \(File exists\)\. Set --output_dir"):
        explore(dataset, tmp_path / "out")


def test_a_series_is_described_by_its_mean(tmp_path, capsys):
    """The mean is also what inference and training take."""
    voxels = np.arange(4 * 5 * 6 * 2, dtype=np.int16).reshape(4, 5, 6, 2)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii.gz")
    assert explore(tmp_path, tmp_path / "out") == 0
    assert " 4x5x6 " in capsys.readouterr().out
    assert (tmp_path / "out" / "explore.png").exists()
