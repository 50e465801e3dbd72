"""Write a datalist for a folder of scans with labels: paired by name, split by patient."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scripts.batch.own_masks import is_uncorrected
from scripts.common.errors import CallError, UserError, counted, shown
from scripts.common.preflight import check_writable, is_true
from scripts.data.datalist import SPLITS, write_datalist
from scripts.data.find import LABEL_FOLDERS, case_name, find_images, find_label, is_in_label_folder, without_channel
from scripts.data.masks import read_mask
from scripts.labels import encode, label_table

MAX_LINES = 20  # about bad labels
SHOWN_PATIENTS = 4  # so that a visit that was taken for a patient is seen
# `sub-01` of BIDS names, else the name without the contrast at its beginning or its end and a word behind that with whatever follows it:
# 1_t1, 1_T2_SPACE, 1-T2-sag_320 and T2_1 are one patient, and lumbar_T2_001 is one of many
CONTRAST = r"(?i:t[12]w?(?:fs)?|stir|tirm|pdw?(?:fs)?|dixon|water|fat)"
BEHIND = r"(?:[ _-][A-Za-z]+(?:[ _-][A-Za-z0-9]+)*)?"
PATIENT_PATTERN = rf"(?:{CONTRAST}[ _-])?(sub-[^_]+(?=_|$)|.+?(?=(?:[ _-]{CONTRAST}{BEHIND})*(?:[ _-](?i:mr))?$))"


def prepare(
    dataset_dir: str | Path,
    datalist: str | Path,
    validation_fraction: float = 0.15,
    testing_fraction: float = 0.15,
    patient_pattern: str = "",
    labelled: Sequence[int] = (),
    seed: int = 0,
    overwrite: bool | str = False,
    label_scheme: str = "verse",
) -> Path:
    """Write a datalist for a folder of scans with labels: paired by name, split by patient, the same for the same seed.

    Args:
        dataset_dir: folder with scans and labels, see `find_label` for the names.
        datalist: the file to write.
        validation_fraction, testing_fraction: share of patients; each split that is asked for gets at least one.
        patient_pattern: regular expression; its first group, matched at the start of the scan's name or else of its path from
            `dataset_dir`, with `/`, is the patient. Empty: `PATIENT_PATTERN` on the name, or the folder where patients have one each.
            Scans that share a label are those of one patient, whatever their names.
        labelled: VerSe numbers annotated in every scan; empty: in each scan those that its label holds.
        seed: of the shuffle.
        overwrite: replace an existing datalist.
        label_scheme: of the numbers in the labels; the entries name it, and list VerSe's.

    Raises:
        CallError: if the datalist exists or cannot be written, the fractions leave nothing for training, the pattern is none, or the
            labels lie outside the folder.
        UserError: naming all labels that cannot be read or are empty; if there are no labelled scans or too few patients, or the pattern
            does not match a name.
    """
    if validation_fraction + testing_fraction >= 1:
        raise CallError(f"--validation_fraction {validation_fraction} --testing_fraction {testing_fraction}: nothing is left for training")
    if Path(datalist).exists() and not is_true(overwrite, "overwrite"):
        raise CallError(f"{datalist}: exists already; set --overwrite True to replace it")
    try:
        groups = re.compile(patient_pattern or PATIENT_PATTERN).groups
    except re.error as error:
        raise CallError(f"patient_pattern '{patient_pattern}' is no regular expression ({error})") from None
    if not groups:
        raise CallError(f"patient_pattern '{patient_pattern}' needs a group, (...), around the part that names the patient")
    root = Path(dataset_dir)
    images = [image for image in find_images(root) if not is_in_label_folder(image)]
    check_writable(str(Path(datalist).parent), "datalist")
    label_of = {image: find_label(image, is_uncorrected) for image in images}
    drawn = [image for image, label in label_of.items() if find_label(image) != label]  # the network would learn from itself
    unpaired = [image for image, label in label_of.items() if not label]
    paired = {image: label for image, label in label_of.items() if label}
    if outside := next((label for label in paired.values() if not label.is_relative_to(root)), None):
        raise CallError(f"{root}: its labels lie outside it, in {outside.parent}. Set --dataset_dir to the folder that holds both.")
    patient_of = {image: _matched(patient_pattern or PATIENT_PATTERN, image, root) for image in paired}
    folder_of = {} if patient_pattern else _patient_folders(patient_of, root)
    patient_of = _joined(patient_of | folder_of, paired)
    source_of = {image: root.absolute().name if image in folder_of else _source(image) for image in paired}
    patients = _entries_of_patients(paired, patient_of, source_of, root, labelled, label_scheme)
    if not patients:
        hint = "A label of a.nii.gz is a_seg.nii.gz, or labels/a.nii.gz beside images/."
        raise UserError(f"{root}: {counted(unpaired, 'scan')}, none with a label{_passed_over(drawn)}. {hint}")
    try:
        splits = _split(patients, validation_fraction, testing_fraction, seed)
    except ValueError as error:
        raise UserError(f"{root}: {error}. Is --patient_pattern right?") from None
    scans = {s: [entry for p in sorted(splits[s]) for entry in patients[p]] for s in SPLITS}
    write_datalist(scans, datalist)
    sizes = (f"{s} {counted(splits[s], 'patient')} with {counted(scans[s], 'scan')}" for s in SPLITS)
    without = f"{counted(unpaired, 'scan')} {'has' if len(unpaired) == 1 else 'have'} no label"
    if unpaired:
        without += f" ({unpaired[0].relative_to(root)}{', ...' if len(unpaired) > 1 else ''})"
    by_folder = "; the names repeat, so a folder is a patient" if folder_of else ""
    some = f"patients: {', '.join(sorted(patients)[:SHOWN_PATIENTS])}{', ...' if len(patients) > SHOWN_PATIENTS else ''}"
    print(shown(f"{datalist}: {', '.join(sizes)}; {some}; {without}{_passed_over(drawn)}{by_folder}"))
    if not patient_pattern and (twins := _twins(patients)):
        print(shown(f"{datalist}: are {' and '.join(twins)} one patient, and others, too? Then set --patient_pattern '(.+)[ _-]'"))
    return Path(datalist)


def _passed_over(drawn: Sequence[Path]) -> str:
    """What to say of scans beside which there is a mask that inference has drawn and nobody has corrected."""
    return f"; uncorrected masks of this bundle are no labels, {counted(drawn, 'scan')} with such a mask" if drawn else ""


def _twins(patients: Collection[str]) -> list[str]:
    """Two names that differ in their last word alone, as those of two visits do, where this is so for most names, in small groups."""
    of_stem = defaultdict(list)
    for name in sorted(patients):
        of_stem[re.sub(r"[ _-][^ _-]*$", "", name)].append(name)
    groups = [names for names in of_stem.values() if len(names) > 1]
    most = 2 * sum(map(len, groups)) > len(patients)
    return groups[0][:2] if most and max(map(len, groups)) <= len(of_stem) else []  # not patients of one or two sites


def _entries_of_patients(
    label_of: Mapping[Path, Path],
    patient_of: Mapping[Path, str],
    source_of: Mapping[Path, str],
    root: Path,
    labelled: Sequence[int],
    label_scheme: str,
) -> dict[str, list[dict]]:
    """Entries of a datalist, by patient.

    Raises:
        UserError: naming all labels that cannot be read or are empty.
    """
    patients: dict[str, list[dict]] = defaultdict(list)
    problems = []
    for image, label in tqdm(label_of.items(), desc="prepare", unit="scan"):
        try:
            values = _values(label, label_scheme)
        except UserError as error:
            problems.append(str(error))
            continue
        if not values:
            problems.append(f"{label}: no foreground, all values are 0. Label it, or take it out of the folder.")
        patients[patient_of[image]].append(
            {
                "image": image.relative_to(root).as_posix(),
                "label": label.relative_to(root).as_posix(),
                "source": source_of[image],
                "labelled": sorted({*values, *labelled}),
                "patient": patient_of[image],
                "label_scheme": label_scheme,
            }
        )
    problems = [*dict.fromkeys(problems)]  # of a label that several scans share
    if problems:
        more = [f"and {len(problems) - MAX_LINES} more"] if len(problems) > MAX_LINES else []
        raise UserError("\n".join([*problems[:MAX_LINES], *more]))
    return patients


def _split(patients: Collection[str], validation_fraction: float, testing_fraction: float, seed: int) -> dict[str, list[str]]:
    """Patients of every split, drawn at random; each split that is asked for gets at least one.

    Raises:
        ValueError: if there are too few.
    """
    shares = zip(SPLITS[1:], (validation_fraction, testing_fraction))
    counts = {split: max(1, round(share * len(patients))) if share > 0 else 0 for split, share in shares}
    if len(patients) <= sum(counts.values()):
        some = f"({', '.join(sorted(patients)[:SHOWN_PATIENTS])}{', ...' if len(patients) > SHOWN_PATIENTS else ''})"
        raise ValueError(f"{counted(patients, 'patient')} with labels {some}, {sum(counts.values()) + 1} are needed for these splits")
    names = sorted(patients)
    random.Random(seed).shuffle(names)
    splits = {}
    for split in ("testing", "validation"):
        splits[split], names = names[: counts[split]], names[counts[split] :]
    return {**splits, "training": names}


def _matched(pattern: str, image: Path, root: Path) -> str:
    """The patient by a pattern.

    Raises:
        UserError: if it matches neither the scan's name nor its path.
    """
    for text in (without_channel(image), image.relative_to(root).as_posix()):
        if (match := re.match(pattern, text)) and match.group(1) is not None:
            return match.group(1)
    raise UserError(f"{image}: patient_pattern '{pattern}' does not match its name or its path from dataset_dir")


def _joined(patient_of: Mapping[Path, str], label_of: Mapping[Path, Path]) -> dict[Path, str]:
    """Patients, by image, of which those with a label in common are one, under the name of the first."""
    name = {patient: patient for patient in patient_of.values()}
    first: dict[Path, str] = {}
    for image, label in label_of.items():
        mine = name[patient_of[image]]
        if (other := name[first.setdefault(label, mine)]) != mine:
            name = {patient: other if known == mine else known for patient, known in name.items()}
    return {image: name[patient] for image, patient in patient_of.items()}


def _patient_folders(patient_of: Mapping[Path, str], root: Path) -> dict[Path, str]:
    """The folder of each scan, where folders are patients: sub-01/t2, sub-02/t2; nothing where they are not.

    They are if most names repeat from folder to folder, and there are more folders than names, or the names are contrasts alone: names
    repeat in T1/sub-01, T2/sub-01, too, and folders of sites may share a name or two. The uppermost folder counts, for below it may be
    those of a patient's sessions.

    Args:
        patient_of: by the scans' names.
        root: the folder that they were found in.
    """
    inner = {image: [p for p in image.relative_to(root).parts[:-1] if p not in LABEL_FOLDERS] for image in patient_of}
    folder_of = {image: parts[0] for image, parts in inner.items() if parts}
    found_in = defaultdict(set)
    for image, folder in folder_of.items():
        found_in[case_name(image)].add(folder)
    repeated = {image: case_name(image) for image in folder_of if len(found_in[case_name(image)]) > 1}
    folders = {folder_of[image] for image in repeated}
    most = 2 * len(repeated) > sum(folder in folders for folder in folder_of.values())
    contrasts_alone = all(re.fullmatch(rf"{CONTRAST}(?:[_-][A-Za-z]+)*", name) for name in repeated.values())
    more_folders = len(folders) > len({patient_of[image] for image in repeated})
    return folder_of if most and (more_folders or contrasts_alone) else {}


def _values(label: Path, scheme: str) -> list[int]:
    """VerSe numbers that a label file holds.

    Raises:
        UserError: if it cannot be read, or holds other numbers.
    """
    volume, channels, _ = read_mask(label, scheme)
    if scheme == "spider" and (encode(volume.data, str(label), scheme) != channels).any():  # a training reads no reports
        raise UserError(f"{label}: its report names other levels than its numbers of {scheme} do. Write it in the numbers of verse.")
    return [label_table()[c].verse for c in np.unique(channels) if c]


def _source(image: Path) -> str:
    """The folder that a scan lies in, or the one above where that says nothing: `images`, and the folders of a patient of BIDS."""
    folder = image.absolute().parent
    of_patient = [parent for parent in image.absolute().parents if parent.name.startswith("sub-")]
    if of_patient:
        folder = of_patient[-1].parent
    return (folder.parent if folder.name in LABEL_FOLDERS else folder).name
