"""The command `measure`: tables and pictures for masks of any origin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from conftest import BUNDLE, TOOLS, fails
from scipy import ndimage

from scripts.common.errors import CallError, UserError
from scripts.common.files import sha256_of
from scripts.common.tables import read_rows
from scripts.data.find import find_image, find_masks
from scripts.data.masks import write_label_map
from scripts.data.own_masks import write_report
from scripts.data.volumes import read_volume, turned_to_ras
from scripts.labels import decode, encode, label_table, structure
from scripts.measure.rows import CENTRE
from scripts.measure.signal import measure_signals
from scripts.measure.spine import measure_spine
from scripts.phantoms.phantom import draw_phantom, write_phantom
from scripts.tools.measure import measure


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Write two phantoms, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("masks")
    for seed, stem in ((5, "a"), (6, "b/c")):
        phantom = draw_phantom(seed, contrast="T2w")
        write_phantom(phantom, folder / f"{stem}_T2w.nii.gz", folder / f"{stem}_T2w_seg.nii.gz", folder / f"{stem}_truth.json")
    return folder


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_a_folder(cohort, tmp_path, capsys):
    before = {p: p.read_bytes() for p in cohort.rglob("*") if p.is_file()}
    monai.bundle.run("measure", config_file=TOOLS, bundle_root=str(BUNDLE), dataset_dir=str(cohort), output_dir=str(tmp_path))
    assert {p: p.read_bytes() for p in cohort.rglob("*") if p.is_file()} == before
    assert files(tmp_path) == {"measures.csv", "measured_spines.csv", "a_T2w_measures.png", "b/c_T2w_measures.png"}
    assert capsys.readouterr().out.splitlines()[:2] == [f"{tmp_path}/measures.csv", f"{tmp_path}/measured_spines.csv"]
    rows, spines = read_rows(tmp_path / "measures.csv"), read_rows(tmp_path / "measured_spines.csv")
    assert [row["mask"] for row in spines] == ["a_T2w_seg.nii.gz", "b/c_T2w_seg.nii.gz"]
    for spine in spines:
        mask = read_volume(cohort / spine["mask"])
        expected = measure_spine(encode(mask.data), mask.affine)
        found = {row["name"]: row for row in rows if row["mask"] == spine["mask"]}
        label = encode(mask.data)
        voxels = {s.name: int((label == s.channel).sum()) for s in label_table()[1:] if (label == s.channel).any()}
        assert set(found) == set(voxels) > set(expected.structures)  # structures without measures have rows too
        for name, row in found.items():
            assert int(row["value"]) == structure(name).verse
            assert float(row["volume_mm3"]) == round(voxels[name] * abs(np.linalg.det(mask.affine)), 1)
        turned, _ = turned_to_ras(label, mask.affine)
        assert {name for name, row in found.items() if "superior" in row["cut_by_view"].split()} == {
            label_table()[c].name for c in np.unique(turned[:, :, -1]) if c
        }
        assert (spine["file"], spine["label_scheme"]) == (str(cohort / spine["mask"]), "verse")
        assert spine["scan"] == str(cohort / spine["mask"].replace("_seg", ""))
        of_mask = ("mask", "file", "scan", "label_scheme", "warnings")
        assert {k: v for k, v in spine.items() if v and k not in of_mask} == {k: str(v) for k, v in expected.spine.items()}
        scan = read_volume(cohort / spine["mask"].replace("_seg", ""))
        signals = measure_signals(label, scan.data, scan.affine)
        assert len(signals) > 10
        for name, row in found.items():
            of_mask = ("mask", "label_scheme", "name", "value", "volume_mm3", "cut_by_view", *CENTRE)
            numbers = {**expected.structures.get(name, {}), **signals.get(name, {})}
            assert {k: v for k, v in row.items() if v and k not in of_mask} == {k: str(v) for k, v in numbers.items()}


def test_one_mask_in_another_scheme(cohort, tmp_path):
    label = nib.load(cohort / "a_T2w_seg.nii.gz")
    channels = encode(np.asarray(label.dataobj))
    nib.save(nib.Nifti1Image(decode(channels, "totalspineseg"), label.affine), tmp_path / "mask.nii.gz")
    rows = measure(tmp_path, tmp_path / "out", prediction=tmp_path / "mask.nii.gz", label_scheme="totalspineseg")
    expected = measure_spine(channels, label.affine).structures
    assert {
        row["name"]: {k: v for k, v in row.items() if k in expected[row["name"]]} for row in rows if row["name"] in expected
    } == expected
    assert {row["name"]: row["value"] for row in rows} == {
        label_table()[c].name: label_table()[c].totalspineseg for c in np.unique(channels)[1:]
    }
    assert files(tmp_path / "out") == {"measures.csv", "measured_spines.csv"}  # no scan, no picture
    measure(tmp_path, tmp_path / "out", prediction=tmp_path / "mask.nii.gz", image=cohort / "a_T2w.nii.gz", label_scheme="totalspineseg")
    assert (tmp_path / "out" / "mask_measures.png").exists()


def test_one_mask_more_leaves_the_others_in_the_tables(cohort, tmp_path):
    masks = [cohort / "a_T2w_seg.nii.gz", cohort / "b" / "c_T2w_seg.nii.gz"]
    for mask in (*masks, masks[0]):
        measure("", tmp_path, prediction=mask)
    for table in ("measures.csv", "measured_spines.csv"):
        found = [row["mask"] for row in read_rows(tmp_path / table)]
        assert list(dict.fromkeys(found)) == [str(masks[1]), str(masks[0])]
    assert len(found) == 2
    shutil.copytree(cohort, tmp_path / "of another patient")
    with pytest.raises(UserError, match=r"a_T2w_measures.png: exists already, and is the picture of .*/a_T2w.nii.gz. Move it"):
        measure("", tmp_path, prediction=tmp_path / "of another patient" / "a_T2w_seg.nii.gz")


def test_a_mask_has_one_row_however_its_path_is_spelled(cohort, tmp_path, monkeypatch):
    data = Path(shutil.copytree(cohort, tmp_path / "data"))
    out = tmp_path / "out"
    measure(data, out)
    monkeypatch.chdir(tmp_path)
    rows = {name: read_rows(out / name) for name in ("measures.csv", "measured_spines.csv")}
    names, pictures = {row["mask"] for row in rows["measured_spines.csv"]}, files(out)
    for folder, mask in (
        ("data", "data/b/c_T2w_seg.nii.gz"),
        (data, "data/b/../b/c_T2w_seg.nii.gz"),
        ("elsewhere", data / "a_T2w_seg.nii.gz"),
        ("elsewhere", "data/a_T2w_seg.nii.gz"),
    ):
        measure(folder, out, prediction=mask)
        for name, before in rows.items():
            assert sorted(map(str, read_rows(out / name))) == sorted(map(str, before))
    assert files(out) == pictures
    # a mask in another folder whose name is taken
    shutil.copy(cohort / "b" / "c_T2w_seg.nii.gz", tmp_path / "a_T2w_seg.nii.gz")
    measure(tmp_path, out, prediction=tmp_path / "a_T2w_seg.nii.gz")
    assert {row["mask"] for row in read_rows(out / "measures.csv")} == {*names, f"{tmp_path}/a_T2w_seg.nii.gz"}


def test_the_signal_in_another_map_of_the_same_grid(cohort, tmp_path):
    """The other map may hold fat fractions and lies beside the scan that the mask was drawn on."""
    mask = cohort / "a_T2w_seg.nii.gz"
    label = nib.load(mask)
    values = np.asarray(label.dataobj)
    half = np.random.default_rng(0).choice([0.25, 0.75], values.shape) * (values > 0)
    nib.save(nib.Nifti1Image(half.astype(np.float32), label.affine), tmp_path / "fat.nii.gz")
    rows = measure("", tmp_path, prediction=mask, image=tmp_path / "fat.nii.gz")
    signals = [row for row in rows if "signal_mean" in row]
    assert len(signals) > 10
    for row in signals:
        if row["volume_mm3"] > 10_000:
            assert row["signal_mean"] == pytest.approx(0.5, abs=0.03)
            assert row["signal_sd"] == pytest.approx(0.25, abs=0.005)
    assert not any(
        "signal_mean" in row for row in measure("", tmp_path / "without", prediction=shutil.copy(mask, tmp_path / "alone_seg.nii.gz"))
    )


def test_the_scheme_that_the_report_names(cohort, tmp_path):
    label = nib.load(cohort / "a_T2w_seg.nii.gz")
    channels = encode(np.asarray(label.dataobj))
    for scheme in ("channel", "nonsense"):
        (tmp_path / scheme).mkdir()
        nib.save(nib.Nifti1Image(channels, label.affine), tmp_path / scheme / "a_seg.nii.gz")
        (tmp_path / scheme / "a_seg.json").write_text(json.dumps({"label_scheme": scheme}))
    rows = measure(tmp_path / "channel", tmp_path / "out")
    assert {row["name"]: row["value"] for row in rows} == {label_table()[c].name: c for c in np.unique(channels)[1:].tolist()}
    with pytest.raises(UserError, match="unknown label values"):  # the option comes first
        measure(tmp_path / "channel", tmp_path / "out", label_scheme="verse")
    mask = tmp_path / "nonsense" / "a_seg.nii.gz"
    with fails(f"{mask}: its report has the label scheme 'nonsense'. Set --label_scheme to one of verse, channel, spider, totalspineseg."):
        measure(mask.parent, tmp_path / "out")


def test_the_tables_of_inference_stay(cohort, tmp_path):
    for name in ("structures.csv", "spines.csv"):
        (tmp_path / name).write_text("mask\na_seg.nii.gz\n")
    measure(cohort, tmp_path)
    assert [(tmp_path / name).read_text() for name in ("structures.csv", "spines.csv")] == ["mask\na_seg.nii.gz\n"] * 2


def test_a_scan_in_place_of_a_mask(cohort, tmp_path):
    image = nib.load(cohort / "a_T2w.nii.gz")
    nib.save(image, tmp_path / "a_seg.nii.gz")
    with pytest.raises(
        UserError, match=r"a_seg.nii.gz: unknown label values \[1, 2, 3, 4, 5\] and \d+ more. Is it a scan, not a mask\? The"
    ):
        measure(tmp_path, tmp_path / "out")


def test_a_broken_mask_costs_no_other(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "in")
    (tmp_path / "in" / "a_T2w_seg.nii.gz").write_bytes(b"x")
    label = nib.load(tmp_path / "in" / "b" / "c_T2w_seg.nii.gz")
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 99, np.uint8), label.affine), tmp_path / "in" / "d_seg.nii.gz")
    nib.save(label.slicer[1:], tmp_path / "in" / "e_T2w_seg.nii.gz")
    shutil.copy(cohort / "b" / "c_T2w.nii.gz", tmp_path / "in" / "e_T2w.nii.gz")
    with pytest.raises(SystemExit) as error:
        measure(tmp_path / "in", tmp_path / "out")
    assert error.value.code == 1
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [str(tmp_path / "in" / f"{stem}_seg.nii.gz") for stem in ("a_T2w", "d", "e_T2w")]
    assert lines[1].startswith(f"{tmp_path}/in/d_seg.nii.gz: unknown label values [99]")
    assert f"not on the grid of {tmp_path}/in/e_T2w.nii.gz" in lines[2]
    assert {row["mask"] for row in read_rows(tmp_path / "out" / "measures.csv")} == {"b/c_T2w_seg.nii.gz"}


def test_an_empty_mask_has_a_row_in_both_tables(cohort, tmp_path, capsys):
    label = nib.load(cohort / "a_T2w_seg.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), tmp_path / "a_seg.nii.gz")
    shutil.copy(cohort / "a_T2w.nii.gz", tmp_path / "a.nii.gz")
    (row,) = measure(tmp_path, tmp_path / "out")
    assert {k: v for k, v in row.items() if v is not None} == {"mask": "a_seg.nii.gz", "label_scheme": "verse"}
    assert files(tmp_path / "out") == {"measures.csv", "measured_spines.csv", "a_measures.png"}
    (spine,) = read_rows(tmp_path / "out" / "measured_spines.csv")
    assert spine["warnings"].split(" | ")[-1] == "no vertebra and no disc was found: the mask is empty"
    assert f"{tmp_path}/a_seg.nii.gz: no vertebra and no disc was found: the mask is empty\n" in capsys.readouterr().out


def test_a_disc_that_is_not_drawn_is_measured_all_the_same(cohort, tmp_path):
    label = nib.load(cohort / "a_T2w_seg.nii.gz")
    values = np.asarray(label.dataobj)
    l3_l4 = structure("L3/L4").verse
    nib.save(nib.Nifti1Image(np.where(values == l3_l4, 0, values), label.affine), tmp_path / "a_seg.nii.gz")
    rows = {row["name"]: row for row in measure(tmp_path, tmp_path / "out")}
    whole = {row["name"]: row for row in measure("", tmp_path / "whole", prediction=cohort / "a_T2w_seg.nii.gz")}
    undrawn = rows.pop("L3/L4")
    assert (undrawn["value"], undrawn["volume_mm3"], undrawn["cut_by_view"]) == (None, None, "")
    assert undrawn["height_index"] == whole["L3/L4"]["height_index"] > 0
    assert list(rows) == [name for name in whole if name != "L3/L4"]


def test_discs_alone_cannot_be_measured(cohort, tmp_path, capsys):
    label = nib.load(cohort / "a_T2w_seg.nii.gz")
    values = np.asarray(label.dataobj)
    nib.save(nib.Nifti1Image(np.where(values > 100, values, 0), label.affine), tmp_path / "a_seg.nii.gz")
    rows = measure(tmp_path, tmp_path / "out")
    assert {"/" in row["name"] for row in rows} == {True}
    assert f"{tmp_path}/a_seg.nii.gz: nothing could be measured: the mask holds no body\n" in capsys.readouterr().out


@pytest.mark.parametrize("edited", [False, True])
def test_what_inference_has_doubted_holds_until_a_mask_is_edited(cohort, tmp_path, edited):
    mask = shutil.copy(cohort / "a_T2w_seg.nii.gz", tmp_path / "a_seg.nii.gz")
    content = {"label_scheme": "verse", "uncertain": True, "sequence_probability": 0.859, "structures": [], "mask_sha256": sha256_of(mask)}
    (tmp_path / "a_seg.json").write_text(json.dumps(content))
    if edited:
        label = nib.load(mask)
        nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[::-1], label.affine), mask)
    measure(tmp_path, tmp_path / "out")
    (spine,) = read_rows(tmp_path / "out" / "measured_spines.csv")
    assert (spine["uncertain"], spine["edited_since"]) == (("", "True") if edited else ("True", "False"))
    assert ("the levels are uncertain (probability 0.85)" in spine["warnings"]) is not edited


def test_slips_of_an_editor(cohort, tmp_path):
    """Five voxels of another number are no vertebra, and the others keep their measures."""
    label = nib.load(cohort / "a_T2w_seg.nii.gz")
    values = np.array(label.dataobj)
    spine = tuple(np.argwhere(values == structure("L4").verse)[0])
    nib.save(nib.Nifti1Image(values, label.affine), tmp_path / "a_seg.nii.gz")
    values[tuple(np.argwhere(values == 0)[:5].T)] = structure("L6").verse
    values[spine] = structure("T12").verse
    nib.save(nib.Nifti1Image(values, label.affine), tmp_path / "b_seg.nii.gz")
    rows = measure(tmp_path, tmp_path / "out")
    whole, slipped = ({r["name"]: r for r in rows if r["mask"] == name} for name in ("a_seg.nii.gz", "b_seg.nii.gz"))
    assert "middle_height_mm" not in slipped["L6"]
    for name in ("L5", "L3"):
        for key in ("anterior_height_mm", "wedge_deg", "coronal_deg"):
            assert slipped[name][key] == pytest.approx(whole[name][key], abs=0.3)
    spines = {row["mask"]: row["warnings"].split(" | ") for row in read_rows(tmp_path / "out" / "measured_spines.csv")}
    assert not any("pieces" in line for line in spines["a_seg.nii.gz"])
    assert any(line.startswith("in several pieces (voxels): T12 (") and line.endswith(", 1)") for line in spines["b_seg.nii.gz"])


def test_the_sides_that_cut_a_body_stay_when_its_mask_is_edited(cohort, tmp_path):
    mask = shutil.copy(cohort / "a_T2w_seg.nii.gz", tmp_path / "a_seg.nii.gz")
    rows = [{"name": "L3", "cut_by_view": ["left", "superior"]}, {"name": "L4", "cut_by_view": []}]
    content = {"uncertain": False, "sequence_probability": 1.0, "structures": rows, "mask_sha256": "of the mask before"}
    Path(mask.with_name("a_seg.json")).write_text(json.dumps(content))
    found = {row["name"]: row["cut_by_view"].split() for row in measure(tmp_path, tmp_path / "out")}
    assert ("left" in found["L3"], "superior" in found["L3"], "left" in found["L4"]) == (True, False, False)


@pytest.mark.parametrize("edit", [{"structures": None}, {"structures": [{"value": 20}]}, {"warnings": None}])
def test_a_report_that_was_edited_says_nothing(cohort, tmp_path, edit):
    mask = shutil.copy(cohort / "a_T2w_seg.nii.gz", tmp_path / "a_seg.nii.gz")
    content = {"uncertain": True, "sequence_probability": 0.859, "structures": [], "mask_sha256": sha256_of(mask)}
    (tmp_path / "a_seg.json").write_text(json.dumps({**content, **edit}))
    measure(tmp_path, tmp_path / "out")
    (spine,) = read_rows(tmp_path / "out" / "measured_spines.csv")
    assert spine["uncertain"] == ""


def test_wrong_calls(cohort, tmp_path):
    with fails("measure takes --image, a scan, with --prediction, its mask; --dataset_dir takes a folder of masks"):
        measure(cohort, tmp_path, image=cohort / "a_T2w.nii.gz")
    with fails(f"{tmp_path}: no masks found. Expected _seg.nii.gz, _seg.nii, _seg.mha, _seg.mhd, _seg.nrrd, _seg.nhdr files."):
        measure(tmp_path, tmp_path / "out")
    with pytest.raises(CallError, match="no such folder"):
        measure(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(CallError, match="label scheme 'verses' does not exist"):
        measure(cohort, tmp_path, label_scheme="verses")
    assert not files(tmp_path)


def test_the_scan_beside(tmp_path):
    def write(*names: str) -> list[Path]:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return [tmp_path / name for name in names]

    for mask, scan in (
        write("a_seg.nii.gz", "a_T2w.nii.gz"),
        write("b[1]_seg.nii.gz", "b[1].mha"),
        write("s/labels/c.nii.gz", "s/images/c.nii.gz"),
        write("n/labelsTr/d.nii.gz", "n/imagesTr/d_0000.nii.gz"),
    ):
        assert find_image(mask) == scan
    write("a_mask.nii.gz", "a_T1w_dseg.nii.gz")  # before and behind a_T2w, by their names
    assert find_image(tmp_path / "a_seg.nii.gz") == tmp_path / "a_T2w.nii.gz"
    (alone,) = write("e_seg.nii.gz")
    assert find_image(alone) is None
    write(".hidden_seg.nii.gz", "picture_seg.png")
    expected = ["a_seg.nii.gz", "b[1]_seg.nii.gz", "e_seg.nii.gz", "n/labelsTr/d.nii.gz", "s/labels/c.nii.gz"]
    assert [p.relative_to(tmp_path).as_posix() for p in find_masks(tmp_path)] == expected


def test_a_scan_with_a_blank_border(tmp_path, capsys):
    phantom = draw_phantom(3, contrast="T2w", order="RAS", oblique_deg=0.0)
    label = encode(phantom.label)
    middle = int(np.flatnonzero((label == structure("L1").channel).any((0, 1))).mean())
    image = phantom.image.copy()
    image[:, :, middle:] = 0
    label[:, :, middle:] = 0
    nib.save(nib.Nifti1Image(image, phantom.affine), tmp_path / "a_T2w.nii.gz")
    nib.save(nib.Nifti1Image(decode(label, "verse"), phantom.affine), tmp_path / "a_T2w_seg.nii.gz")
    found = {row["name"]: row for row in measure(tmp_path, tmp_path / "out")}
    assert found["L1"]["cut_by_view"] == "superior"
    assert "wedge_deg" not in found["L1"]
    assert "wedge_deg" in found["L2"]
    assert "without a scan" not in capsys.readouterr().out
    (tmp_path / "a_T2w.nii.gz").unlink()  # without it nothing tells
    assert "wedge_deg" in {row["name"]: row for row in measure(tmp_path, tmp_path / "out")}["L1"]
    assert (
        f"1 mask without a scan ({tmp_path}/a_T2w_seg.nii.gz): no signals, no picture, and what a blank border cuts is not known\n"
        in capsys.readouterr().out
    )


def test_a_mask_that_was_saved_in_another_order_of_axes(cohort, tmp_path):
    """The mask covers the same place as its scan, so it is measured and drawn like the original."""
    mask = nib.load(cohort / "a_T2w_seg.nii.gz")
    scan = cohort / "a_T2w.nii.gz"
    turned = mask.as_reoriented(nib.orientations.axcodes2ornt("LSA"))
    assert turned.shape != mask.shape
    nib.save(turned, tmp_path / "turned.nii.gz")
    rows = [
        measure("", tmp_path / name, prediction=path, image=scan)
        for name, path in (("a", cohort / "a_T2w_seg.nii.gz"), ("b", tmp_path / "turned.nii.gz"))
    ]
    assert [{k: v for k, v in row.items() if k != "mask"} for row in rows[0]] == [
        {k: v for k, v in row.items() if k != "mask"} for row in rows[1]
    ]
    assert all(any((tmp_path / name).glob("*_measures.png")) for name in "ab")
    nib.save(
        nib.Nifti1Image(np.asarray(turned.dataobj), nib.affines.from_matvec(np.eye(3), [3, 0, 0]) @ turned.affine), tmp_path / "c.nii.gz"
    )
    with pytest.raises(UserError, match="not on the grid of"):
        measure("", tmp_path / "d", prediction=tmp_path / "c.nii.gz", image=scan)


@pytest.mark.parametrize("margin", [0, 3])
def test_a_map_that_is_blank_around_the_structures_changes_no_height(cohort, tmp_path, margin):
    mask, scan = cohort / "a_T2w_seg.nii.gz", cohort / "a_T2w.nii.gz"
    image, label = nib.load(scan), np.asarray(nib.load(mask).dataobj)
    region = ndimage.binary_dilation(label > 0, iterations=margin) if margin else label > 0
    fraction = np.where(region, 0.3 + 0.001 * np.arange(label.shape[0])[:, None, None], 0).astype(np.float32)
    fraction[tuple(np.argwhere(label == 22)[::50].T)] = np.nan  # where a fit has failed
    nib.save(nib.Nifti1Image(fraction, image.affine), tmp_path / "map.nii.gz")
    found = [{row["name"]: row for row in measure(cohort, tmp_path / path.stem, mask, path)} for path in (scan, tmp_path / "map.nii.gz")]
    assert found[0].keys() == found[1].keys()
    assert [row.get("middle_height_mm") for row in found[0].values()] == [row.get("middle_height_mm") for row in found[1].values()]
    assert 0.3 <= found[1]["L3"]["signal_mean"] <= 0.3 + 0.001 * label.shape[0]
    assert found[1]["L3"]["signal_sd"] < 0.05


def test_numbers_of_an_edited_spider_mask_are_those_of_the_file(tmp_path):
    """A vertebra was added that the report lacks: names are no longer taken from it, but the numbers in the file stay."""
    label = np.zeros((12, 12, 60), np.uint8)
    for place in range(3):
        label[2:10, 2:10, 10 * place + 1 : 10 * place + 9] = place + 1  # counted from L4
    mask = tmp_path / "a_seg.nii.gz"
    write_label_map(label, np.diag([4.0, 4.0, 3.5, 1.0]), mask)
    rows = [{"name": name, "value": value} for value, name in enumerate(("L4", "L3", "L2"), 1)]
    write_report(mask, {"label_scheme": "spider", "sequence_probability": 0.9, "uncertain": False, "structures": rows})
    assert {row["name"]: row["value"] for row in measure(tmp_path, tmp_path / "out") if row["value"]} == {"L2": 3, "L3": 2, "L4": 1}
    label[2:10, 2:10, 31:39] = 4
    write_label_map(label, np.diag([4.0, 4.0, 3.5, 1.0]), mask)
    assert {row["name"]: row["value"] for row in measure(tmp_path, tmp_path / "out") if row["value"]} == {
        "L2": 4,
        "L3": 3,
        "L4": 2,
        "L5": 1,
    }
