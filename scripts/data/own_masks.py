"""Tell masks that this bundle has written, and may replace, from labels of other people under the same names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.common.errors import ScanError
from scripts.common.files import is_half_gzip, sha256_of, write_json
from scripts.data.masks import MaskLayout, beside, check_mask_names, is_report, read_report

MADE_BY = b"spine_mri_segmentation"


def signature(values: np.ndarray) -> bytes:
    """Return the signature for the header (`descrip`, 79 bytes at most): the bundle and a hash of the values, wrong once edited."""
    return MADE_BY + b" " + hashlib.sha256(np.asarray(values, np.uint8).tobytes("F")).hexdigest()[:32].encode()


def write_report(mask: Path, report: Mapping[str, Any], mask_sha256: str = "") -> None:
    """Write the report beside a mask, with the sha256 of the mask: the given one, else that of the file, if there is one.

    Whoever has just written the mask gives its hash, because another process may have replaced the file since.
    """
    mask_sha256 = mask_sha256 or (sha256_of(mask) if mask.is_file() else "")
    write_json(beside(mask, ".json"), {**report, **({"mask_sha256": mask_sha256} if mask_sha256 else {})})


def is_as_reported(mask: Path, report: Mapping[str, Any]) -> bool:
    """Return True if a mask is still the file that its report was written for."""
    return "mask_sha256" in report and report["mask_sha256"] == sha256_of(mask)


def report_as_written(mask: Path) -> dict[str, Any]:
    """Return the report beside a mask; nothing if there is none or if either was edited since, so that the names are somebody's own."""
    report = read_report(mask)
    return report if is_report(report) and is_as_reported(mask, report) else {}


def is_uncorrected(mask: Path) -> bool:
    """Return True if this bundle has drawn the mask and nobody has edited or renamed it since.

    A mask without a report, as a run leaves it that was killed between the two, is known by its signature.
    """
    return _is_own(mask, read_report(mask))


def check_replaceable(mask: Path, scan: str) -> None:
    """Refuse to replace a mask or report that is not this bundle's own, unchanged one for the same scan.

    Args:
        mask: path of the mask to write.
        scan: scan that the mask belongs to.

    Raises:
        ScanError: if there already is a mask or a report that this bundle has not written, that has been changed or renamed since, or
            that belongs to another scan, or a link that leads nowhere.
    """
    fix = "Move it, set another --output_dir, or set --overwrite True if it may go."
    report = beside(mask, ".json")
    if mask.is_symlink() and not mask.exists():
        raise ScanError(scan, f"{mask} is there already, a link to a file that is missing (of git-annex or datalad?)", fix)
    if not mask.exists():
        if _is_foreign(report):
            raise ScanError(scan, f"{report} is there already and not as this bundle has written it", fix)
        return
    if is_half_gzip(mask):
        return
    content = read_report(mask)
    if other := other_scan(content, scan):
        raise ScanError(scan, f"{mask} is there already, the mask of {other}", fix)
    if not _is_own(mask, content):
        raise ScanError(scan, f"{mask} is there already and not as this bundle has written it (a label, or a mask that was corrected)", fix)


def check_masks(entries: Sequence[Mapping[str, Any]], output_dir: str, data_root_dir: str, overwrite: bool) -> None:
    """Refuse scans whose masks cannot be written, before the first one is segmented.

    Args:
        entries: entries with an `image` each.
        output_dir, data_root_dir: see `MaskLayout`.
        overwrite: replace also what `check_replaceable` refuses.

    Raises:
        CallError: if the masks of two scans would have the same path.
        ScanError: as `check_replaceable`, without `overwrite`.
    """
    check_mask_names(entries, output_dir, data_root_dir)
    layout = MaskLayout(output_dir, data_root_dir)
    for entry in [] if overwrite else entries:
        check_replaceable(layout.filename(entry["image"]), entry["image"])


def other_scan(report: Mapping[str, Any], scan: str | Path) -> str:
    """Return the scan that a report names if it is not `scan` and still exists, as scans in many folders may share a name; else ''."""
    source = report.get("source")
    other = isinstance(source, str) and os.path.exists(source) and os.path.realpath(source) != os.path.realpath(scan)
    return source if other else ""


def _is_own(mask: Path, report: Mapping[str, Any]) -> bool:
    if "mask_sha256" not in report:
        return _is_signed(mask)
    return "renamed" not in report and is_as_reported(mask, report)


def _is_foreign(report: Path) -> bool:
    """Return True if the JSON file beside a mask is not a report of this bundle. A damaged one counts as a report."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not (isinstance(content, dict) and "mask_sha256" in content)


def _is_signed(mask: Path) -> bool:
    """Return True if this bundle has drawn the mask and nobody has changed a value since."""
    try:
        image = nib.load(mask)
        written = bytes(image.header["descrip"]).rstrip(b"\0")
        return written.startswith(MADE_BY) and written == signature(image.dataobj)
    except Exception:  # a damaged file raises errors of many kinds; whoever reads it tells of it
        return False
