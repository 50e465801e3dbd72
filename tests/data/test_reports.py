"""Scan and label scheme of a mask, by the report beside it."""

from __future__ import annotations

import json

import pytest

from scripts.common.errors import UserError
from scripts.data.reports import scan_of, scheme_of

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
