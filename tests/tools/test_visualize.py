"""The command `visualize`: a mask is drawn on its scan, which the command finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import fails
from PIL import Image

from scripts.common.errors import CallError, UserError
from scripts.common.files import sha256_of
from scripts.labels import SCHEMES, decode, structure
from scripts.tools.visualize import visualize


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write a scan in the orientation PIR, and its mask in every label scheme."""
    image = np.random.default_rng(0).uniform(0, 100, (40, 50, 9)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[10:30, 12:20, 2:7], label[10:30, 26:34, 2:7] = structure("L1").channel, structure("L2").channel
    affine = np.array([[0, 0, 4.0, 0], [-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "c1_T2w.nii.gz")
    for scheme in SCHEMES:
        (tmp_path / scheme).mkdir()
        nib.save(nib.Nifti1Image(decode(label, scheme), affine), tmp_path / scheme / "c1_T2w_seg.nii.gz")
    return tmp_path


def report(mask: Path, **items: object) -> None:
    mask.with_name("c1_T2w_seg.json").write_text(json.dumps(items))


def test_with_a_reference(folder, capsys):
    mask = folder / "verse" / "c1_T2w_seg.nii.gz"
    alone, beside = (
        visualize(str(mask), folder / name, folder / "c1_T2w.nii.gz", reference) for name, reference in (("a", ""), ("b", mask))
    )
    assert [alone, beside] == [folder / name / "c1_T2w.png" for name in "ab"]
    assert alone.read_bytes()[:4] == b"\x89PNG"
    assert alone.read_bytes() != beside.read_bytes()
    assert capsys.readouterr().out == f"{alone}\n{beside}\n"


@pytest.fixture
def drawn(monkeypatch) -> list[dict]:
    """Collect the arguments of figures instead of drawing them."""
    calls: list[dict] = []

    def draw(image, prediction, affine, *, reference, title, note, warnings) -> None:
        calls.append({"image": image, "prediction": prediction, "reference": reference, "title": title, "note": note, "warnings": warnings})

    monkeypatch.setattr("scripts.tools.visualize.case_figure", draw)
    monkeypatch.setattr("scripts.tools.visualize.save_figure", lambda figure, path, source: path)
    return calls


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_report_names_scan_and_scheme(folder, drawn, scheme):
    mask, scan = folder / scheme / "c1_T2w_seg.nii.gz", folder / "c1_T2w.nii.gz"
    report(mask, label_scheme=scheme, source=str(scan))
    visualize(mask, folder / "out", reference=mask)
    np.testing.assert_array_equal(drawn[0]["image"], nib.load(scan).dataobj)
    for label in (drawn[0]["prediction"], drawn[0]["reference"]):
        np.testing.assert_array_equal(label, nib.load(folder / "channel" / mask.name).dataobj)
    assert drawn[0]["title"] == f"c1_T2w: {scheme}/c1_T2w_seg.nii.gz"  # the title tells which of several masks of the scan is shown


def test_what_the_call_says_comes_first(folder, drawn):
    mask, scan = folder / "channel" / "c1_T2w_seg.nii.gz", folder / "c1_T2w.nii.gz"
    report(mask, label_scheme="spider", source=str(folder / "verse" / mask.name))
    visualize(mask, folder / "out", scan, label_scheme="channel")
    np.testing.assert_array_equal(drawn[0]["image"], nib.load(scan).dataobj)
    np.testing.assert_array_equal(drawn[0]["prediction"], nib.load(mask).dataobj)


def test_the_picture_of_another_patient_stays(folder):
    mask = folder / "verse" / "c1_T2w_seg.nii.gz"
    (folder / "other").mkdir()
    other = shutil.copy(folder / "c1_T2w.nii.gz", folder / "other")
    picture = visualize(mask, folder / "out", folder / "c1_T2w.nii.gz")
    before = picture.read_bytes()
    with fails(f"{picture}: exists already, and is the picture of {folder / 'c1_T2w.nii.gz'}. Move it, or set another --output_dir."):
        visualize(mask, folder / "out", other)
    assert picture.read_bytes() == before
    visualize(folder / "channel" / mask.name, folder / "out", folder / "c1_T2w.nii.gz", label_scheme="channel")  # another mask of the scan
    assert picture.read_bytes() != before
    (folder / "c1_T2w.nii.gz").unlink()  # or the scan was moved to where it is drawn now
    assert visualize(mask, folder / "out", other) == picture
    Image.new("RGB", (2, 2)).save(picture)  # a user's own picture under the name of the scan
    with fails(f"{picture}: exists already, and this command has not drawn it. Move it, or set another --output_dir."):
        visualize(mask, folder / "out", other)


def test_uncertain_names_are_told(folder, drawn):
    mask = folder / "verse" / "c1_T2w_seg.nii.gz"
    for sha in (sha256_of(mask), "of the mask before it was edited"):
        names = {"uncertain": True, "sequence_probability": 0.957, "structures": [{"name": "S1"}], "warnings": ["look"]}
        report(mask, source=str(folder / "c1_T2w.nii.gz"), mask_sha256=sha, **names)
        visualize(mask, folder / "out")
    assert [call["note"] for call in drawn] == ["levels uncertain (0.95), 1 warning", ""]
    assert [call["warnings"] for call in drawn] == [["look"], ()]


def test_the_scan_beside_a_mask(folder):
    shutil.copy(folder / "verse" / "c1_T2w_seg.nii.gz", folder)
    assert visualize(folder / "c1_T2w_seg.nii.gz", folder / "out") == folder / "out" / "c1_T2w.png"


def test_no_scan(folder):
    with pytest.raises(CallError, match=r"c1_T2w_seg\.nii\.gz: neither a report that names its scan, nor a scan beside it\. Set --image\."):
        visualize(folder / "verse" / "c1_T2w_seg.nii.gz", folder)


def test_another_grid(folder):
    mask = nib.load(folder / "verse" / "c1_T2w_seg.nii.gz")
    moved = mask.affine.copy()
    moved[0, 3] += 0.5
    nib.save(nib.Nifti1Image(mask.dataobj, moved), folder / "moved.nii.gz")
    nib.save(nib.Nifti1Image(mask.dataobj[1:], moved), folder / "short.nii.gz")
    scan = folder / "c1_T2w.nii.gz"
    with pytest.raises(UserError, match=r"moved.nii.gz: not on the grid of .*c1_T2w.nii.gz \(affines that differ by up to 0.5 mm\)"):
        visualize(folder / "moved.nii.gz", folder, scan)
    with pytest.raises(UserError, match=r"short.nii.gz: not on the grid .*\(shape \(40, 50, 9\) and \(39, 50, 9\)\)"):
        visualize(folder / "short.nii.gz", folder, scan)
