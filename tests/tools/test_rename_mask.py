"""The command `rename`, on a mask of the shipped weights and on masks of other origin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from conftest import BUNDLE, INFERENCE, TOOLS, fails, failures, files, last_line

from scripts.common.errors import CallError
from scripts.common.files import sha256_of
from scripts.common.tables import read_rows
from scripts.data.masks import read_mask, read_report, write_label_map
from scripts.data.own_masks import is_uncorrected, write_report
from scripts.data.scans import read_scan
from scripts.data.volumes import read_volume
from scripts.labels import decode, encode, label_table, structure
from scripts.measure.report import report_on
from scripts.measure.spine import measure_spine
from scripts.phantoms.phantom import draw_phantom
from scripts.tools.measure import measure
from scripts.tools.rename import rename


def segment(folder: Path, scan: Path, **options) -> int:
    """Run inference with the shipped weights and return its exit code."""
    try:
        monai.bundle.run(config_file=INFERENCE, bundle_root=str(BUNDLE), image=str(scan), output_dir=str(folder), num_workers=0, **options)
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture(scope="module")
def segmented(small_scan, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmented")
    assert segment(folder, small_scan) == 0
    return folder


def bodies(mask: Path) -> list[str]:
    values = np.unique(np.asarray(nib.load(mask).dataobj))
    return [s.name for s in label_table()[1:] if s.verse in values and not s.is_disc]


@pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").exists(), reason="no weights are shipped")
def test_a_mask_of_inference(small_scan, segmented, tmp_path, capfd):
    folder = Path(shutil.copytree(segmented, tmp_path / "masks"))
    mask = next(folder.glob("*_seg.nii.gz"))
    before, report = encode(read_volume(mask).data), json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())
    pictures = {p: p.read_bytes() for p in folder.glob("*.png")}
    old = bodies(mask)
    order = [s.name for s in label_table() if s.kind == "body" and s.name != "L6"]
    new = [order[order.index(name) + 1] for name in old]
    monai.bundle.run("rename", config_file=TOOLS, bundle_root=str(BUNDLE), prediction=str(mask), lowest=new[-1])
    out = capfd.readouterr().out
    assert f"{mask}: {old[0]}-{old[-1]} renamed to {new[0]}-{new[-1]}" in out

    assert bodies(mask) == new
    after = encode(read_volume(mask).data)
    for a, b in zip(old, new):
        np.testing.assert_array_equal(after == structure(b).channel, before == structure(a).channel)
    renamed = json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())
    assert {k: renamed[k] for k in ("scan", "source", "label_scheme", "made_from")} == {
        k: report[k] for k in ("scan", "source", "label_scheme", "made_from")
    }
    assert renamed["renamed"] == {"lowest": new[-1], "lumbar": 0}
    assert (renamed["sequence_probability"], renamed["uncertain"]) == (None, False)
    assert "runner_up" not in renamed
    assert renamed["mask_sha256"] == sha256_of(mask)
    assert f"the levels were named by hand: {new[-1]} is the lowest body" in renamed["warnings"]
    measures = measure_spine(after, nib.load(mask).affine, {row["name"]: row["cut_by_view"] for row in renamed["structures"]})
    assert {row["name"]: row["measures"] for row in renamed["structures"] if row["measures"]} == measures.structures
    assert {row["name"]: row["value"] for row in renamed["structures"]} == {
        label_table()[c].name: label_table()[c].verse for c in np.unique(after)[1:]
    }
    assert all(p.read_bytes() != content for p, content in pictures.items())
    assert files(folder) == files(segmented)

    # inference keeps it, and takes its rows from the new report
    assert segment(folder, small_scan) == 0
    assert bodies(mask) == new
    assert "1 skipped (already done)" in last_line(capfd)
    assert [row["name"] for row in read_rows(folder / "structures.csv") if "/" not in row["name"]] == new
    assert read_rows(folder / "spines.csv")[0]["named_by_hand"] == "True"
    assert "named by hand" not in read_rows(folder / "spines.csv")[0]["warnings"]  # a confirmation is no warning
    # with other settings too
    assert segment(folder, small_scan, threshold=0.5) == 1
    assert bodies(mask) == new
    assert "a mask that was corrected" in failures(folder)[small_scan.name]["reason"]
    # and back
    rename(mask, lowest=old[-1])
    assert bodies(mask) == old
    warnings = json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())["warnings"]
    assert [line for line in warnings if "by hand" in line] == [f"the levels were named by hand: {old[-1]} is the lowest body"]
    measure(folder, tmp_path / "measured")
    assert read_rows(tmp_path / "measured" / "measured_spines.csv")[0]["uncertain"] == "False"


@pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").exists(), reason="no weights are shipped")
def test_names_are_confirmed(small_scan, segmented, tmp_path, capsys):
    """From then on the mask counts as a user's own label."""
    folder = Path(shutil.copytree(segmented, tmp_path / "masks"))
    mask = next(folder.glob("*_seg.nii.gz"))
    before, names, told = encode(read_volume(mask).data), bodies(mask), read_report(mask)
    assert is_uncorrected(mask)
    rename(mask, lowest=names[-1])
    assert f"{mask}: the names {names[0]}-{names[-1]} are confirmed" in capsys.readouterr().out
    np.testing.assert_array_equal(encode(read_volume(mask).data), before)
    report = read_report(mask)
    assert (report["uncertain"], report["renamed"]) == (False, {"lowest": names[-1], "lumbar": 0})
    assert [line for line in report["warnings"] if "named by hand" not in line] == [w for w in told["warnings"] if "uncertain" not in w]
    changed = ("uncertain", "renamed", "warnings", "mask_sha256")  # the rest is what the network has said
    assert {k: v for k, v in report.items() if k not in changed} == {k: v for k, v in told.items() if k not in changed}
    assert not is_uncorrected(mask)
    assert segment(folder, small_scan, threshold=0.5) == 1  # as in the test above
    with fails(f"{mask}: it has these names already. Set --lowest to the right name of its lowest body, or --lumbar to the right number."):
        rename(mask, lowest=names[-1])


@pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").exists(), reason="no weights are shipped")
@pytest.mark.parametrize("is_confirmed", [False, True])
def test_a_mask_that_was_edited_is_told_of_anew(small_scan, segmented, tmp_path, is_confirmed):
    folder = Path(shutil.copytree(segmented, tmp_path / "masks"))
    mask = next(folder.glob("*_seg.nii.gz"))
    names, picture = bodies(mask), next(folder.glob("*.png"))
    if is_confirmed:
        rename(mask, lowest=names[-1])
    values, grid = np.array(nib.load(mask).dataobj), nib.load(mask)
    values[values == structure(names[0]).verse] = 0
    nib.save(nib.Nifti1Image(values, None, grid.header), mask)
    drawn = picture.read_bytes()
    rename(mask, lowest=names[-1])
    assert [row["name"] for row in read_report(mask)["structures"] if "/" not in row["name"]] == names[1:]
    assert picture.read_bytes() != drawn
    assert segment(folder, small_scan) == 0
    assert [row["name"] for row in read_rows(folder / "structures.csv") if "/" not in row["name"]] == names[1:]
    np.testing.assert_array_equal(np.array(nib.load(mask).dataobj), values)


@pytest.fixture
def mask(tmp_path) -> Path:
    """Write L4 and L5 to a file without report and scan."""
    label = np.zeros((20, 20, 40), np.uint8)
    label[5:15, 5:15, 24:34], label[5:15, 5:15, 8:18] = structure("L4").channel, structure("L5").channel
    return write(tmp_path, label, "verse")


def write(folder: Path, label: np.ndarray, scheme: str) -> Path:
    path = folder / f"{scheme}_seg.nii.gz"
    nib.save(nib.Nifti1Image(decode(label, scheme).astype(np.uint8), np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return path


def test_a_mask_of_somebody_else(mask, capsys):
    others = files(mask.parent)
    rename(mask, lowest="S1")
    assert bodies(mask) == ["L5", "S1"]
    assert capsys.readouterr().out == f"{mask}: L4-L5 renamed to L5-S1\n{mask}: to undo this, run rename with --lowest L5 --lumbar 5\n"
    assert files(mask.parent) == others
    np.testing.assert_array_equal(nib.load(mask).affine, np.diag([2.0, 2.0, 2.0, 1.0]))


def test_discs_that_have_no_name_at_their_new_place(tmp_path, capsys):
    """The label table has no disc below S1; without one of its discs, a mask cannot get its old names back."""
    label = np.zeros((9, 9, 40), np.uint8)
    for place, name in enumerate(("L5/S1", "L5", "L4/L5", "L4")):
        label[2:7, 2:7, 10 * place + 2 : 10 * place + 10] = structure(name).channel
    mask = write(tmp_path, label, "verse")
    rename(mask, lowest="S1")
    removed = "removed L5/S1, because the label table has no such disc at the new place"
    assert capsys.readouterr().out == f"{mask}: L4-L5 renamed to L5-S1\n{mask}: {removed}\n"


def test_numbers_of_another_scheme(mask):
    spider = write(mask.parent, encode(read_volume(mask).data), "spider")
    rename(spider, lowest="L3", label_scheme="spider")
    assert np.unique(np.asarray(nib.load(spider).dataobj)).tolist() == [0, 3, 4]
    tell = f"{spider}: the numbers of spider cannot express these levels. Segment the scan with --label_scheme verse."
    for lowest, lumbar in (("S1", 0), ("L6", 6)):  # it has no S1, and counts from the lowest lumbar vertebra
        with fails(tell):
            rename(spider, lowest=lowest, lumbar=lumbar, label_scheme="spider")
    assert np.unique(np.asarray(nib.load(spider).dataobj)).tolist() == [0, 3, 4]


@pytest.mark.parametrize("edited", [False, True])
def test_a_confirmation_keeps_names_and_numbers_together(tmp_path, edited):
    """SPIDER counts from the lowest lumbar vertebra; only the report tells that this is L4."""
    phantom = draw_phantom(3, lumbar=4)
    channels = encode(phantom.label)
    scan, mask = tmp_path / "a.nii.gz", tmp_path / "a_seg.nii.gz"
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), scan)
    write_label_map(decode(channels, "spider"), phantom.affine, mask)
    report, _ = report_on(channels, phantom.affine, read_scan(scan), "spider", {})
    write_report(mask, {**report, "sequence_probability": 0.5, "uncertain": True, "source": str(scan)})
    values = {row["name"]: row["value"] for row in report["structures"] if row["value"]}  # S1 has no number
    assert (values["L4"], values["L3"]) == (1, 2)
    if edited:
        stored = decode(channels, "spider")
        stored[tuple(np.argwhere(stored == 2)[:5].T)] = 0
        write_label_map(stored, phantom.affine, mask)
    before = mask.read_bytes()
    rows = measure(tmp_path, tmp_path / "out")
    assert {row["name"]: row["value"] for row in rows} == values
    rename(mask, lowest="L4")
    assert (mask.read_bytes() == before) is not edited
    raw, names = read_volume(mask).data, read_mask(mask)[0].data
    told = {row["name"]: row["value"] for row in read_report(mask)["structures"] if row["value"]}
    assert told == {label_table()[c].name: raw[names == c][0] for c in np.unique(names)[1:]}
    assert set(told) == set(values)


def test_two_discs_that_share_a_number(tmp_path):
    """L5/S1 and L6/S1 share a number in totalspineseg; their place in the mask tells them apart."""
    label = np.zeros((9, 9, 60), np.uint8)
    for place, name in enumerate(("S1", "L5/S1", "L5", "L4/L5", "L4")):
        label[2:7, 2:7, 10 * place + 2 : 10 * place + 10] = structure(name).channel
    mask = write(tmp_path, label, "totalspineseg")
    rename(mask, lumbar=6, label_scheme="totalspineseg")
    assert np.unique(np.asarray(nib.load(mask).dataobj)).tolist() == [0, 45, 46, 50, 100]
    rename(mask, lumbar=5, label_scheme="totalspineseg")
    np.testing.assert_array_equal(encode(read_volume(mask).data, scheme="totalspineseg"), label)


@pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").exists(), reason="no weights are shipped")
def test_the_scan_that_a_report_tells_of_is_needed(small_scan, segmented, tmp_path):
    folder = Path(shutil.copytree(segmented, tmp_path / "masks"))
    mask = next(folder.glob("*_seg.nii.gz"))
    report = mask.with_name(mask.name.replace(".nii.gz", ".json"))
    report.write_text(report.read_text().replace(str(small_scan), str(tmp_path / "moved.nii.gz")))
    before = {p: p.read_bytes() for p in folder.iterdir()}
    with fails(f"{mask}: its scan is not found, neither where its report says nor beside it. Set --image."):
        rename(mask, lowest="L1")
    assert {p: p.read_bytes() for p in folder.iterdir()} == before
    rename(mask, lowest="L1", image=small_scan)
    assert all(p.read_bytes() != content for p, content in before.items() if "_seg" in p.name)


def test_wrong_calls(mask, tmp_path):
    content = mask.read_bytes()
    with pytest.raises(CallError, match=r"^rename needs --prediction"):
        rename("", lowest="S1")
    with pytest.raises(CallError, match=r"^rename needs --prediction"):
        rename(mask)
    with fails(f"{mask}: it has these names already, and there is no report beside it in which to confirm them."):
        rename(mask, lumbar=5)
    with fails(f"{tmp_path}/a.nrrd: rename writes NIfTI masks only, .nii or .nii.gz"):
        rename(Path(shutil.copy(mask, tmp_path / "a.nrrd")), lowest="S1")
    with pytest.raises(CallError, match=r"^--lowest L9: choose one of T8, .*, S1\."):
        rename(mask, lowest="L9")
    assert mask.read_bytes() == content
