"""Scan and label scheme of a mask, by the report beside it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import UserError
from scripts.data.reports import read_mask, scan_of, scheme_of
from scripts.labels import structure

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
    assert scheme_of(mask) == "verse"
    report = tmp_path / "a_T2w_seg.json"
    report.write_text(json.dumps({"label_scheme": "spider"}))
    assert scheme_of(mask) == "spider"
    for content in NO_REPORTS:
        report.write_text(content)
        assert scheme_of(mask) == "verse"
    report.write_text(json.dumps({"label_scheme": "spidre"}))
    with pytest.raises(UserError, match=r"a_T2w_seg\.nii\.gz: its report has the label scheme 'spidre'\. Set --label_scheme to one of "):
        scheme_of(mask)


def test_a_mask_in_the_numbers_of_its_report(mask, tmp_path):
    values = np.zeros((3, 3, 3), np.uint8)
    values[1] = structure("L1").spider
    nib.save(nib.Nifti1Image(values, np.eye(4)), mask)
    for content, given in (({"label_scheme": "spider"}, ""), ({"label_scheme": "channel"}, "spider")):
        (tmp_path / "a_T2w_seg.json").write_text(json.dumps(content))
        volume, label, scheme = read_mask(mask, given)
        np.testing.assert_array_equal(volume.data, values)
        np.testing.assert_array_equal(label, np.where(values, structure("L1").channel, 0))
        assert scheme == "spider"
    (tmp_path / "a_T2w_seg.json").write_text(json.dumps({"label_scheme": "totalspineseg"}))
    with pytest.raises(UserError, match=r"numbers of .*'spider'.*\. Its report names that scheme; --label_scheme names another\.$"):
        read_mask(mask)
    with pytest.raises(UserError, match=r"numbers of .*'spider'.*\.$") as error:
        read_mask(mask, "verse")
    assert "report" not in str(error.value)
