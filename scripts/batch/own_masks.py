"""Masks that this bundle has written may be replaced. Others may be somebody's labels: they lie under the same names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib

from scripts.common.errors import ScanError
from scripts.common.files import is_whole_gzip
from scripts.data.datalist import case_name

MADE_BY = b"spine_mri_segmentation"  # in the header (descrip) of a mask


def digest(mask: Path) -> str:
    """sha256 of the file; the report of a mask keeps it."""
    return hashlib.sha256(mask.read_bytes()).hexdigest()


def check_replaceable(mask: Path, scan: str) -> None:
    """
    Args:
        mask: where a mask is about to be written.
        scan: it is of.

    Raises:
        ScanError: if a whole file lies there that this bundle has not written, or that has been changed since.
    """
    if not mask.exists() or not is_whole_gzip(mask):
        return
    report = mask.with_name(f"{case_name(mask)}.json")
    try:
        known = json.loads(report.read_text(encoding="utf-8"))["mask_sha256"]
        own = known == digest(mask)
    except (OSError, ValueError, KeyError, TypeError):  # no report of ours: a run that was killed between the two?
        own = _made_here(mask)
    if not own:
        fix = "Move it, set another --output_dir, or set --overwrite True if it may go."
        raise ScanError(scan, f"{mask} is there already and not as this bundle has written it (a label or a corrected mask)", fix)


def _made_here(mask: Path) -> bool:
    try:
        return bytes(nib.load(mask).header["descrip"]).rstrip(b"\0") == MADE_BY
    except (OSError, nib.filebasedimages.ImageFileError):
        return False
