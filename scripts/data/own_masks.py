"""Masks that this bundle has written may be replaced. Others may be somebody's labels: they lie under the same names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.common.errors import ScanError
from scripts.common.files import is_half_gzip, sha256_of, write_whole
from scripts.data.masks import beside, is_report, read_report

MADE_BY = b"spine_mri_segmentation"


def signature(values: np.ndarray) -> bytes:
    """What the header (`descrip`, 79 bytes at most) of a mask says: who made it, of which values. Editors keep it; it is wrong then."""
    return MADE_BY + b" " + hashlib.sha256(np.asarray(values, np.uint8).tobytes("F")).hexdigest()[:32].encode()


def write_report(mask: Path, report: Mapping[str, Any]) -> None:
    """Write the report beside a mask, with the sha256 of that, if it was written."""
    known = {"mask_sha256": sha256_of(mask)} if mask.is_file() else {}
    text = json.dumps({**report, **known}, indent=1) + "\n"
    write_whole(beside(mask, ".json"), partial(Path.write_text, data=text, encoding="utf-8"))


def is_as_reported(mask: Path, report: Mapping[str, Any]) -> bool:
    """Whether a mask is still the file that its report was written for."""
    return "mask_sha256" in report and report["mask_sha256"] == sha256_of(mask)


def report_as_written(mask: Path) -> dict[str, Any]:
    """The report beside a mask; nothing if there is none, or one of both was edited since: its names are somebody's own then."""
    report = read_report(mask)
    return report if is_report(report) and is_as_reported(mask, report) else {}


def is_uncorrected(mask: Path) -> bool:
    """Whether this bundle has drawn the mask, and nobody has edited or renamed it since."""
    report = read_report(mask)
    return "renamed" not in report and is_as_reported(mask, report)


def check_replaceable(mask: Path, scan: str) -> None:
    """
    Args:
        mask: where a mask is about to be written.
        scan: that the mask is of.

    Raises:
        ScanError: if a file lies there, or where its report goes, that this bundle has not written, that has been changed or renamed
            since, or that is of another scan.
    """
    fix = "Move it, set another --output_dir, or set --overwrite True if it may go."
    report = beside(mask, ".json")
    if not mask.exists():
        if _is_foreign(report):
            raise ScanError(scan, f"{report} is there already and not as this bundle has written it", fix)
        return
    if is_half_gzip(mask):
        return
    content = read_report(mask)
    if other := other_scan(content, scan):
        raise ScanError(scan, f"{mask} is there already, the mask of {other}", fix)
    # without a report of ours: a run that was killed between the two?
    is_own = is_uncorrected(mask) if "mask_sha256" in content else _is_signed(mask)
    if not is_own:
        raise ScanError(scan, f"{mask} is there already and not as this bundle has written it (a label, or a mask that was corrected)", fix)


def other_scan(report: Mapping[str, Any], scan: str | Path) -> str:
    """The scan that a report is of, if it is not `scan` and still there: scans of one name may lie in many folders. Else an empty text."""
    source = report.get("source")
    other = isinstance(source, str) and os.path.exists(source) and os.path.realpath(source) != os.path.realpath(scan)
    return source if other else ""


def _is_foreign(report: Path) -> bool:
    """Whether the JSON file beside a mask is no report of ours. A damaged one counts as ours."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not (isinstance(content, dict) and "mask_sha256" in content)


def _is_signed(mask: Path) -> bool:
    """Whether nobody has changed a value since this bundle has drawn the mask."""
    try:
        image = nib.load(mask)
        written = bytes(image.header["descrip"]).rstrip(b"\0")
        return written.startswith(MADE_BY) and written == signature(image.dataobj)
    except (OSError, nib.filebasedimages.ImageFileError):
        return False
