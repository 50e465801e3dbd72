"""Whether a patient is trained on and tested with: by name, by file, and across the datalists of several folders."""

from __future__ import annotations

import filecmp
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.common.errors import UserError, listed, shown

logger = logging.getLogger(__name__)


def patients_in_two_splits(splits: Mapping[str, Sequence[dict]]) -> list[str]:
    """A problem for each patient, and each other scan, in more than one split. A file is one scan, by whatever link it is named."""
    patients: dict[str, dict[str, str]] = defaultdict(dict)
    scans: dict[str, dict[str, str]] = defaultdict(dict)
    for split, entries in splits.items():
        for entry in entries:
            scans[_file(entry)].setdefault(split, entry["image"])
            if patient := _patient(entry):
                patients[patient].setdefault(split, entry["image"])
    twice = [(f"patient {patient}", of) for patient, of in patients.items() if len(of) > 1]
    named = {image for _, of in twice for image in of.values()}
    twice += [("the scan", of) for of in scans.values() if len(of) > 1 and not named.issuperset(of.values())]
    return [
        f"{next(iter(of.values()))}: {who} is in the splits {' and '.join(of)}. Keep a patient's scans in one split." for who, of in twice
    ]


def check_added(added: Sequence[dict], file: str | Path, splits: Mapping[str, Sequence[dict]], datalist: str | Path) -> None:
    """Compare the training scans of another folder with what the first datalist holds back. Of patients with the same name it only
    warns: in another folder it may be another one, as `sub-01` is.

    Args:
        added: training entries.
        file: the datalist that they are from.
        splits: those of the first datalist that are not trained on.
        datalist: the first datalist.

    Raises:
        UserError: if one is the same file, or a copy of a scan of a patient with the same name.
    """
    held = [(split, entry) for split, entries in splits.items() for entry in entries]
    of_file = {_file(entry): (split, entry) for split, entry in held}
    of_patient = defaultdict(list)
    for split, entry in held:
        of_patient[_patient(entry)].append((split, entry))
    names = []
    for entry in added:
        same = [of_file[_file(entry)]] if _file(entry) in of_file else []
        others = of_patient.get(_patient(entry), []) if _patient(entry) else []
        for split, _ in same or [(split, other) for split, other in others if _is_copy(entry["image"], other["image"])]:
            raise UserError(f"{entry['image']}: trained on by {file}, and under '{split}' of {datalist}. Leave it out of one of them.")
        names += [_patient(entry)] if others else []
    if names:
        some = listed(sorted(set(names)), 5)
        fix = "If they are the same people, leave them out of one of them."
        logger.warning(shown(f"{file}: trains on patients with the names of some that {datalist} holds back ({some}). {fix}"))


def _patient(entry: dict) -> str:
    """As text, since some write 1 and some "1"; empty if there is none."""
    return str(entry.get("patient", ""))


def _file(entry: dict) -> str:
    try:
        return os.path.realpath(entry["image"])
    except ValueError:  # no path can be that; whoever reads it says so
        return entry["image"]


def _is_copy(path: str, other: str) -> bool:
    return os.path.isfile(path) and os.path.isfile(other) and filecmp.cmp(path, other, shallow=False)
