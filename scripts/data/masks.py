"""Write masks where they belong, and read them with the reports beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data.folder_layout import FolderLayoutBase

from scripts.common.errors import CallError, UserError, shown
from scripts.common.files import sha256_of, write_whole
from scripts.data.find import LABEL_POSTFIX, case_name, find_image, folders_of, has_twin
from scripts.data.volumes import Volume, read_volume
from scripts.labels import SCHEMES, encode, label_table


class MaskLayout(FolderLayoutBase):
    """The paths of masks: `<output_dir>/<folders below data_root_dir>/<stem>_seg.nii.gz`, so that equal stems in two folders differ.

    The mask of a scan outside `data_root_dir` goes straight into `output_dir`. The mask of a scan that shares its stem with another scan
    in its folder keeps the suffix: `a.mha_seg.nii.gz`.
    """

    def __init__(self, output_dir: str, data_root_dir: str = "") -> None:
        self.output_dir = Path(output_dir)
        self.data_root_dir = Path(os.path.abspath(data_root_dir))

    def filename(self, subject: str = "subject", **kwargs) -> Path:
        source = Path(os.path.abspath(subject))
        inside = self.data_root_dir in source.parents  # false for a DICOM folder that is the data set itself
        folder = source.parent.relative_to(self.data_root_dir) if inside else Path()
        name = source.name if has_twin(source) else case_name(source)
        return self.output_dir / folder / f"{name}{LABEL_POSTFIX}.nii.gz"

    def first_scans(self, entries: Iterable[Mapping[str, Any]]) -> dict[Path, str]:
        """Return the path of each mask -> the first scan (`image` of an entry) with that path; a later one would overwrite its mask."""
        first: dict[Path, str] = {}
        for entry in entries:
            first.setdefault(self.filename(entry["image"]), entry["image"])
        return first


def check_mask_names(entries: Sequence[Mapping[str, Any]], output_dir: str, data_root_dir: str) -> None:
    """Refuse scans whose masks would overwrite each other.

    Raises:
        CallError: if the masks of two scans would have the same path, as can happen for scans in several folders outside `data_root_dir`.
    """
    layout = MaskLayout(output_dir, data_root_dir)
    first = layout.first_scans(entries)
    for image in (entry["image"] for entry in entries):
        other = first[layout.filename(image)]
        if other != image:
            raise CallError(f"{shown(image)}: its mask would have the name of that of {shown(other)}. Rename one of them.")


def beside(mask: Path, suffix: str) -> Path:
    """Return the path of the report (`.json`) or the figure (`.png`) beside a mask."""
    return mask.with_name(case_name(mask) + suffix)


def write_label_map(values: np.ndarray, affine: np.ndarray, path: Path, description: bytes = b"") -> str:
    """Write label values (XYZ, below 256) as 8-bit NIfTI (`write_nifti`); return the sha256 of the file."""
    return write_nifti(values.astype(np.uint8), affine, path, description)


def write_nifti(array: np.ndarray, affine: np.ndarray, path: Path, description: bytes = b"") -> str:
    """Write a volume, whole or not at all, and return the sha256 of the file.

    Args:
        array: values, shape XYZ.
        affine: 4x4, voxel -> world mm.
        path: file to write.
        description: text for the header, 79 bytes at most.
    """
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)  # some readers only look at the qform
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description
    digests = []

    def write(partial: Path) -> None:
        nib.save(image, partial)
        digests.append(sha256_of(partial))  # before the file has its name, under which another process may replace it

    write_whole(path, write)
    return digests[0]


def read_mask(mask: Path, label_scheme: str = "") -> tuple[Volume, str]:
    """Read a mask as channel indices, and the label scheme of its numbers: the given one, else that of its report, else `verse`.

    SPIDER's numbers count from the lowest lumbar vertebra; the report also tells which one that is.

    Raises:
        UserError: if the file cannot be read, or holds numbers that the scheme does not have.
    """
    report = read_report(mask)
    volume, scheme = read_volume(mask), label_scheme or scheme_of(mask, report)
    try:
        channels = encode(volume.data, str(mask), scheme)
    except UserError as error:
        if label_scheme or "label_scheme" not in report:
            raise
        raise UserError(f"{error} Its report names that scheme; --label_scheme names another.") from None
    if scheme == "spider" and report.get("label_scheme") == "spider":
        channels = _as_reported(volume.data, report, channels)
    return volume._replace(data=channels), scheme


def _as_reported(values: np.ndarray, report: Mapping[str, Any], channels: np.ndarray) -> np.ndarray:
    """Decode a mask by the `value` and `name` of the structures in its report; return `channels` if these do not explain all values."""
    of_name = {s.name: s.channel for s in label_table()}
    rows = [row for row in report.get("structures") or [] if isinstance(row, dict) and row.get("value")]
    known = {row["value"]: of_name.get(row.get("name")) for row in rows}
    if len(known) < len(rows) or None in known.values() or not {*np.unique(values[values > 0]).tolist()} <= known.keys():
        return channels
    table = np.zeros(256, np.uint8)
    table[[*known]] = [*known.values()]
    return table[values.astype(np.uint8)]


def scheme_of(mask: Path, report: Mapping[str, Any]) -> str:
    """Return the label scheme that the report beside a mask names, or `verse`.

    Raises:
        UserError: if the scheme does not exist.
    """
    scheme = report.get("label_scheme", "verse")
    if scheme not in SCHEMES:
        raise UserError(f"{mask}: its report has the label scheme {scheme!r}. Set --label_scheme to one of {', '.join(SCHEMES)}.")
    return scheme


def scan_of(mask: Path) -> Path | None:
    """Return the scan that the report on a mask names, or the one beside the mask; None if there is neither."""
    source = read_report(mask).get("source")
    return Path(source) if isinstance(source, str) and os.path.exists(source) else find_image(mask)


def read_report(mask: Path) -> dict[str, Any]:
    """Read the report beside a mask; an empty dictionary if there is none."""
    try:
        report = json.loads(beside(mask, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def reported_masks(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every mask in a folder and below with its report, if `is_report` accepts that."""
    files = [Path(inner, name) for inner, names in folders_of(folder, lambda error: None) for name in names]
    for path in sorted(file for file in files if file.name.endswith(f"{LABEL_POSTFIX}.json")):
        mask = path.with_name(f"{path.name.removesuffix('.json')}.nii.gz")
        if mask.is_file() and is_report(report := read_report(mask)):
            yield mask, report


def is_report(content: Mapping[str, Any]) -> bool:
    """Return True if a report, which somebody may have edited, has all that `structures.csv` and `spines.csv` need."""
    rows = content.get("structures")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows):
        return False
    lists = [content.get("warnings", []), *(row.get("cut_by_view", []) for row in rows)]
    objects = [content.get("spine", {}), *(row.get("measures", {}) for row in rows)]
    has_texts = all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists)
    return "sequence_probability" in content and has_texts and all(isinstance(x, dict) for x in objects)
