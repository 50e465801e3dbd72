"""Masks, and what the report beside each tells of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from scripts.common.errors import UserError
from scripts.data.find import case_name, find_image
from scripts.data.volumes import Volume, read_volume
from scripts.labels import SCHEMES, encode


def read_mask(mask: Path, label_scheme: str = "") -> tuple[Volume, np.ndarray, str]:
    """A mask, its channel indices, and the label scheme of its numbers: the given one, else that of its report, else `verse`.

    Raises:
        UserError: for a file that cannot be read, or numbers that the scheme does not hold.
    """
    volume, scheme = read_volume(mask), label_scheme or scheme_of(mask)
    try:
        return volume, encode(volume.data, str(mask), scheme), scheme
    except UserError as error:
        if label_scheme or "label_scheme" not in _report_of(mask):
            raise
        raise UserError(f"{error} Its report names that scheme; --label_scheme names another.") from None


def scheme_of(mask: Path) -> str:
    """The label scheme that the report beside a mask names; `verse` if there is none.

    Raises:
        UserError: if it names one that does not exist.
    """
    scheme = _report_of(mask).get("label_scheme", "verse")
    if scheme not in SCHEMES:
        raise UserError(f"{mask}: its report has the label scheme {scheme!r}. Set --label_scheme to one of {', '.join(SCHEMES)}.")
    return scheme


def scan_of(mask: Path) -> Path | None:
    """The scan that the report beside a mask names, or the one beside it; None if there is neither."""
    source = _report_of(mask).get("source")
    return Path(source) if isinstance(source, str) and os.path.exists(source) else find_image(mask)


def _report_of(mask: Path) -> dict[str, Any]:
    """What the report beside a mask says; nothing if there is none, or none of ours."""
    try:
        report = json.loads(mask.with_name(f"{case_name(mask)}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}
