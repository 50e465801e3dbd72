"""Find the patient of each scan by its name, its folder and its label."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from pathlib import Path

from scripts.common.errors import CallError, UserError, listed
from scripts.data.find import LABEL_FOLDERS, case_name, without_channel

# The patient is `sub-01` of BIDS names, else the name without a contrast at its beginning or at its end (there with any word behind it and
# what follows): 1_t1, 1_T2_SPACE, 1-T2-sag_320 and T2_1 are one patient, and lumbar_T2_001 is one of many.
CONTRAST = r"(?i:t[12]w?(?:fs)?|stir|tirm|pdw?(?:fs)?|dixon|water|fat)"
PLANE = r"(?i:(?:sag|ax|cor|tra)[a-z]*)"
SEP = "[ ._-]"
BEHIND = rf"(?:{SEP}[A-Za-z]+(?:{SEP}[A-Za-z0-9]+)*)?"
PATIENT_PATTERN = rf"(?:{CONTRAST}{SEP})?(sub-[^_]+(?=_|$)|.+?(?=(?:{SEP}{CONTRAST}{BEHIND})*(?:{SEP}(?i:mr))?$))"

MAX_SCANS_OF_PATIENT = 10  # a folder with more scans is not that of a patient


def check_pattern(patient_pattern: str) -> None:
    """Refuse a pattern that is not a regular expression with a group.

    Raises:
        CallError: if the pattern is not a regular expression, or has no group.
    """
    try:
        groups = re.compile(patient_pattern).groups
    except re.error as error:
        raise CallError(f"patient_pattern '{patient_pattern}' is not a regular expression ({error})") from None
    if not groups:
        raise CallError(f"patient_pattern '{patient_pattern}' needs a group, (...), around the part that names the patient")


def matched(pattern: str, image: Path, root: Path) -> str:
    """Return the patient of a scan, the first group of a pattern.

    Raises:
        UserError: if the pattern matches neither the scan's name nor its path.
    """
    for text in (without_channel(image), image.relative_to(root).as_posix()):
        if (match := re.match(pattern, text)) and match.group(1) is not None:
            return match.group(1)
    raise UserError(f"{image}: patient_pattern '{pattern}' does not match its name or its path from dataset_dir")


def joined(patient_of: Mapping[Path, str], *common: Mapping[Path, Hashable]) -> dict[Path, str]:
    """Join patients with something in common, such as a label, into one with the name of the first: image -> patient.

    Args:
        patient_of: image -> patient.
        common: mappings from images to something that only scans of one patient share.
    """
    name = {patient: patient for patient in patient_of.values()}
    first: dict[Hashable, str] = {}
    for image, thing in (item for things in common for item in things.items()):
        mine = name[patient_of[image]]
        if (other := name[first.setdefault(thing, mine)]) != mine:
            name = {patient: other if known == mine else known for patient, known in name.items()}
    return {image: name[patient] for image, patient in patient_of.items()}


def without_contrast(images: Iterable[Path]) -> dict[Path, Path]:
    """Return the path of each scan with a contrast in its name, without the contrast.

    So lumbar_T1_001 and lumbar_T2_001 become one patient, also in folders of these contrasts.
    """
    word = re.compile(rf"(?:^|{SEP}){CONTRAST}(?={SEP}|$)")
    paths = {}
    for image in images:
        stem = without_channel(image)
        rest = word.sub("", stem).strip(" ._-")
        if word.search(stem) and rest:
            folders = filter(None, (word.sub("", part) for part in image.parent.parts))
            paths[image] = Path(*folders, rest)
    return paths


def patient_folders(patient_of: Mapping[Path, str], root: Path) -> dict[Path, str]:
    """Return the folder of each scan if folders are patients (sub-01/t2, sub-02/t2), or nothing if they are not.

    They are if all scans are named after nothing but their contrast, or if most file names repeat from folder to folder and either there
    are more such folders than patients by name, or the repeated names are only contrasts: names also repeat in T1/sub-01, T2/sub-01, and
    folders of sites may share a name or two. The uppermost folder that tells scans apart counts, because the folders below it may be the
    sessions of a patient.

    Args:
        patient_of: patient of each scan by its name.
        root: the folder in which the scans were found.
    """
    top = _common_folder(patient_of, root)
    inner = {image: [p for p in image.relative_to(top).parts[:-1] if p not in LABEL_FOLDERS] for image in patient_of}
    folder_of = {image: parts[0] for image, parts in inner.items() if parts}
    if len(folder_of) == len(patient_of) and all(_is_contrast(case_name(image)) for image in patient_of):
        return folder_of
    found_in = defaultdict(set)
    for image, folder in folder_of.items():
        found_in[case_name(image)].add(folder)
    repeated = {image: case_name(image) for image in folder_of if len(found_in[case_name(image)]) > 1}
    folders = {folder_of[image] for image in repeated}
    most = 2 * len(repeated) > sum(folder in folders for folder in folder_of.values())
    contrasts_alone = all(map(_is_contrast, repeated.values()))
    more_folders = len(folders) > len({patient_of[image] for image in repeated})
    return folder_of if most and (more_folders or contrasts_alone) else {}


def _is_contrast(name: str) -> bool:
    """Return True for names such as T2w or t2_tse, which tell no patient."""
    return re.fullmatch(rf"{CONTRAST}(?:[._-][A-Za-z]+)*", name) is not None


def _common_folder(images: Collection[Path], root: Path) -> Path:
    """Return the deepest folder that holds all scans, or `root` if they all lie in the same one, which may then be a patient's."""
    folders = {image.parent for image in images}
    return Path(os.path.commonpath(folders)) if len(folders) > 1 else root


def question(patient_of: Mapping[Path, str], root: Path) -> str:
    """Return a question for the user if one patient may have been taken for several, else nothing."""
    patients, top = {*patient_of.values()}, _common_folder(patient_of, root)
    above = "" if top == root else re.escape(f"{top.relative_to(root).as_posix()}/")  # what all paths begin with
    if contrasts := sorted(name for name in patients if re.fullmatch(CONTRAST, name)):
        return f"is {contrasts[0]} a contrast, not a patient? If folders are patients, set --patient_pattern '{above}([^/]+)/'"
    parts = {  # part of a name in which two scans of one patient may differ -> patient_pattern that leaves it out
        rf"{SEP}[^ ._-]*$": f"(.+){SEP}",
        rf"{SEP}{CONTRAST}{SEP}.*$": f"(.+?)(?:{SEP}(?i:t[12]|stir|tirm|pd).*)?$",
        rf"(?<=\d){CONTRAST}$": f"(.+?){CONTRAST}",
        rf"^(?i:pre|post|baseline|followup|fu){SEP}": f"[A-Za-z]+{SEP}(.+)",
        rf"^{PLANE}{SEP}": f"(?:(?:.*{SEP})?{PLANE}{SEP})?([^ _-]+)",
    }
    for part, pattern in parts.items():
        if pair := _twins(patients, part):
            return f"are {' and '.join(pair)} the same patient, and other names likewise? Then set --patient_pattern '{pattern}'"
    in_folder = defaultdict(set)
    for image, patient in patient_of.items():
        in_folder[image.relative_to(top).parts[0]].add(patient)
    if len(in_folder) > 2 and all(1 < len(names) <= MAX_SCANS_OF_PATIENT for names in in_folder.values()):
        asked = f"are the scans in {min(in_folder)} of one patient, and likewise in the other folders?"
        return f"{asked} Then set --patient_pattern '{above}([^/]+)/'"
    below = defaultdict(set)
    for image in patient_of:
        folder, *others = image.relative_to(top).parts[:-1] or [""]
        below[folder].update(others[:1])
    if patients == below.keys() and all(len(folders) > 1 for folders in below.values()):
        first = min(below)
        asked = f"are the folders in {first} ({listed(sorted(below[first]), 2)}) different patients, and likewise in the others?"
        return f"{asked} Then set --patient_pattern '{above}[^/]+/([^/]+)/'"
    return ""


def _twins(patients: Collection[str], part: str) -> list[str]:
    """Return two names that only differ in a part, such as two visits, if most names form small groups of this kind."""
    of_stem = defaultdict(list)
    for name in sorted(patients):
        of_stem[re.sub(part, "", name)].append(name)
    groups = [names for names in of_stem.values() if len(names) > 1]
    most = 2 * sum(map(len, groups)) > len(patients)
    return groups[0][:2] if most and max(map(len, groups)) <= len(of_stem) else []  # large groups are the patients of a site or two
