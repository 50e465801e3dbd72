"""Find patients and scans that are both trained on and tested with: by name, by file, and across the datalists of several folders."""

from __future__ import annotations

import filecmp
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.common.errors import UserError, listed, shown
from scripts.data.find import files_of_voxels

logger = logging.getLogger(__name__)


def patients_in_two_splits(splits: Mapping[str, Sequence[dict]]) -> list[str]:
    """Return a problem for each patient, and each other scan, in more than one split; links to one file are one scan."""
    patients: dict[str, dict[str, str]] = defaultdict(dict)  # patient -> split -> first image there
    scans: dict[str, dict[str, str]] = defaultdict(dict)
    for split, entries in splits.items():
        for entry in entries:
            scans[_file(entry)].setdefault(split, entry["image"])
            if patient := _patient(entry):
                patients[patient].setdefault(split, entry["image"])
    twice = [(f"patient {patient}", image_in) for patient, image_in in patients.items() if len(image_in) > 1]
    named = {image for _, image_in in twice for image in image_in.values()}
    twice += [("the scan", image_in) for image_in in scans.values() if len(image_in) > 1 and not named.issuperset(image_in.values())]
    fix = "Keep a patient's scans in one split."
    return [f"{next(iter(image_in.values()))}: {who} is in the splits {' and '.join(image_in)}. {fix}" for who, image_in in twice]


def check_added(added: Sequence[dict], file: str | Path, splits: Mapping[str, Sequence[dict]], datalist: str | Path) -> None:
    """Refuse training scans of another folder that the first datalist holds back.

    Patients with the same name only get a warning, because in another folder a name such as `sub-01` may be another patient. Copies of
    a scan, but not of a DICOM folder, are found whatever their names.

    Args:
        added: training entries.
        file: datalist of these entries.
        splits: splits of the first datalist that are not trained on.
        datalist: the first datalist.

    Raises:
        UserError: if a scan is the same file as one of `splits`, or a copy of one.
    """
    held = [(split, entry) for split, entries in splits.items() for entry in entries]
    held_by_file = {_file(entry): (split, entry) for split, entry in held}
    held_by_size = defaultdict(list)
    for split, entry in held:
        held_by_size[_size(entry)].append((split, entry))
    held_patients = {_patient(entry) for _, entry in held} - {""}
    names = []
    for entry in added:
        same = [held_by_file[_file(entry)]] if _file(entry) in held_by_file else []
        same = same or [(split, other) for split, other in held_by_size[_size(entry)] if _is_copy(entry["image"], other["image"])]
        if same:
            where = f"trained on in {file} and held back as '{same[0][0]}' in {datalist}"
            raise UserError(f"{entry['image']}: is {where}. Leave it out of one of them.")
        if _patient(entry) in held_patients:
            names.append(_patient(entry))
    if names:
        some = listed(sorted(set(names)), 5)
        fix = "If they are the same people, leave them out of one of the two."
        logger.warning(shown(f"{file}: trains on patients that share their names with patients held back by {datalist} ({some}). {fix}"))


def _patient(entry: dict) -> str:
    """Return the patient as text, since some datalists hold 1 and some "1"; empty if there is none."""
    return str(entry.get("patient", ""))


def _file(entry: dict) -> str:
    try:
        return os.path.realpath(entry["image"])
    except ValueError:  # not a possible path; its reader will say so
        return entry["image"]


def _size(entry: dict) -> int:
    """Return the size of the file of a scan; -1 for a folder, or if there is none."""
    return os.path.getsize(entry["image"]) if os.path.isfile(entry["image"]) else -1


def _is_copy(path: str, other: str) -> bool:
    """Return True for two files with the same bytes; headers must have voxels with the same bytes, too. Folders are not compared."""
    files = [[p, *files_of_voxels(Path(p))] for p in (path, other) if os.path.isfile(p)]
    return len(files) == 2 and len(files[0]) == len(files[1]) and all(filecmp.cmp(a, b, shallow=False) for a, b in zip(*files))
