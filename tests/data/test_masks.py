"""Where masks go, and the scan and label scheme of a mask, by the report beside it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import CallError, UserError
from scripts.data.masks import MaskLayout, check_mask_names, read_mask, read_report, scan_of, scheme_of
from scripts.labels import decode, encode, structure

NO_REPORTS = ("[]", "{", json.dumps({"source": 5}))


@pytest.fixture
def mask(tmp_path):
    (tmp_path / "a_T2w_seg.nii.gz").touch()
    return tmp_path / "a_T2w_seg.nii.gz"


def test_the_scan_that_the_report_names(mask, tmp_path):
    scan, report = tmp_path / "scans" / "a_T2w.nii.gz", tmp_path / "a_T2w_seg.json"
    scan.parent.mkdir()
    scan.touch()
    report.write_text(json.dumps({"source": str(scan)}))
    assert scan_of(mask) == scan
    for content in (*NO_REPORTS, json.dumps({"source": str(tmp_path / "gone.nii.gz")})):
        report.write_text(content)
        assert scan_of(mask) is None
    beside = tmp_path / "a_T2w.nii.gz"
    beside.touch()
    assert scan_of(mask) == beside


def test_the_scheme_that_the_report_names(mask, tmp_path):
    assert scheme_of(mask, read_report(mask)) == "verse"
    report = tmp_path / "a_T2w_seg.json"
    report.write_text(json.dumps({"label_scheme": "spider"}))
    assert scheme_of(mask, read_report(mask)) == "spider"
    for content in NO_REPORTS:
        report.write_text(content)
        assert scheme_of(mask, read_report(mask)) == "verse"
    report.write_text(json.dumps({"label_scheme": "spidre"}))
    with pytest.raises(UserError, match=r"a_T2w_seg\.nii\.gz: its report has the label scheme 'spidre'\. Set --label_scheme to one of "):
        scheme_of(mask, read_report(mask))


def test_a_mask_in_the_numbers_of_its_report(mask, tmp_path):
    values = np.zeros((3, 3, 3), np.uint8)
    values[1] = structure("L1").spider
    nib.save(nib.Nifti1Image(values, np.eye(4)), mask)
    for content, given in (({"label_scheme": "spider"}, ""), ({"label_scheme": "channel"}, "spider")):
        (tmp_path / "a_T2w_seg.json").write_text(json.dumps(content))
        volume, scheme = read_mask(mask, given)
        np.testing.assert_array_equal(volume.affine, np.eye(4))
        np.testing.assert_array_equal(volume.data, np.where(values, structure("L1").channel, 0))
        assert scheme == "spider"
    (tmp_path / "a_T2w_seg.json").write_text(json.dumps({"label_scheme": "totalspineseg"}))
    with pytest.raises(UserError, match=r"numbers of .*'spider'.*\. Its report names that scheme; --label_scheme names another\.$"):
        read_mask(mask)
    with pytest.raises(UserError, match=r"numbers of .*'spider'.*\.$") as error:
        read_mask(mask, "verse")
    assert "report" not in str(error.value)


@pytest.mark.parametrize("names", [["L3", "L4", "S1"], ["L4", "L5", "L6", "L4/L5"], ["L4", "L5", "S1"]])
def test_spider_numbers_stand_for_what_the_report_says(mask, tmp_path, names):
    """Two numbers are those of L4 and L5, whatever their names, where nobody tells which vertebra is the lowest."""
    truth = np.array([0, *(structure(name).channel for name in names)], np.uint8).reshape(-1, 1, 1)
    values = decode(truth, "spider")
    nib.save(nib.Nifti1Image(values.astype(np.uint8), np.eye(4)), mask)
    rows = [{"name": name, "value": int(value) or None} for name, value in zip(names, values[1:].ravel())]
    report = tmp_path / "a_T2w_seg.json"
    report.write_text(json.dumps({"label_scheme": "spider", "structures": rows}))
    expected = np.where(values > 0, truth, 0)
    np.testing.assert_array_equal(read_mask(mask)[0].data, expected)
    np.testing.assert_array_equal(read_mask(mask, "spider")[0].data, expected)
    report.write_text(json.dumps({"label_scheme": "spider", "structures": rows[1:]}))  # the mask was edited since
    np.testing.assert_array_equal(read_mask(mask)[0].data, encode(values, "mask", "spider"))
    report.write_text(json.dumps({"label_scheme": "spider", "structures": None}))
    np.testing.assert_array_equal(read_mask(mask)[0].data, encode(values, "mask", "spider"))


@pytest.mark.parametrize(
    ("root", "subject", "expected"),
    [
        ("/data", "/data/a.nii.gz", "a_seg.nii.gz"),
        ("/data", "/data/site1/sub-01/a.nii.gz", "site1/sub-01/a_seg.nii.gz"),
        ("/data", "/data/site2/sub-01/a.mha", "site2/sub-01/a_seg.nii.gz"),  # the same stem in another folder
        ("/data", "/elsewhere/x/a.nrrd", "a_seg.nii.gz"),
        ("/data", "/data2/a.nii", "a_seg.nii.gz"),  # not below /data
        ("/data", "/data/x.1/b.v2_T2w.nii.gz", "x.1/b.v2_T2w_seg.nii.gz"),
        ("/data", "/data/sub-01/series.12", "sub-01/series.12_seg.nii.gz"),  # a DICOM folder
        ("/data", "/data/site1/../site2/a.nii.gz", "site2/a_seg.nii.gz"),
    ],
)
def test_mask_layout(root, subject, expected):
    assert MaskLayout("/out", root).filename(subject) == Path("/out") / expected


def test_mask_layout_of_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert MaskLayout("out", "scans").filename("scans/a/b.nii.gz") == Path("out/a/b_seg.nii.gz")
    assert MaskLayout("out", "scans").filename(str(tmp_path / "scans/a/b.nii.gz")) == Path("out/a/b_seg.nii.gz")
    assert MaskLayout("out", "./scans/").filename("./scans/a/b.nii.gz") == Path("out/a/b_seg.nii.gz")
    assert MaskLayout("out").filename("a/b.nii.gz") == Path("out/a/b_seg.nii.gz")  # no root: the working directory


def test_mask_layout_of_a_dicom_folder_that_is_the_root():
    assert MaskLayout("/out", "/data/series.12").filename("/data/series.12") == Path("/out/series.12_seg.nii.gz")


def test_mask_layout_of_a_root_above_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "bundle").mkdir()
    monkeypatch.chdir(tmp_path / "bundle")
    scan = str(Path("../scans/a/b.nii.gz").absolute())  # as inference_entries writes it
    assert MaskLayout("/out", "../scans").filename(scan) == Path("/out/a/b_seg.nii.gz")


def test_masks_of_one_name(tmp_path):
    entries = [{"image": str(tmp_path / name)} for name in ("data/a/x.nii", "data/b/x.nii", "p1/T2.nii", "p1/T2.nii")]
    check_mask_names(entries, str(tmp_path / "out"), str(tmp_path / "data"))
    with pytest.raises(CallError, match=rf"^{tmp_path}/p2/T2.nii: its mask would have the name of that of {tmp_path}/p1/T2.nii"):
        check_mask_names([*entries, {"image": str(tmp_path / "p2/T2.nii")}], str(tmp_path / "out"), str(tmp_path / "data"))
