"""Write a datalist for a folder of scans with labels: paired by name, split by patient."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scripts.common.errors import CallError, UserError
from scripts.common.preflight import check_writable, is_true
from scripts.data.datalist import SPLITS, write_datalist
from scripts.data.find import LABEL_FOLDERS, case_name, find_images, find_label, is_in_label_folder
from scripts.data.volumes import read_volume
from scripts.labels import encode, label_table

MAX_LINES = 20  # about bad labels
# `sub-01` of BIDS names, else the name without the contrast at its end and words behind that: 1_t1, 1_T2_SPACE and 1-T2-sag are one patient
CONTRAST = r"(?i:t[12]w?|stir|tirm|pdw?|dixon|water|fat)"
PATIENT_PATTERN = rf"(sub-[^_]+(?=_|$)|.+?(?=(?:[_-]{CONTRAST}(?:[_-][A-Za-z]+)*)*(?:[_-](?i:mr))?$))"


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
        patient_pattern: regular expression; its first group, matched at the start of the scan's name, is the patient.
            Empty: `PATIENT_PATTERN`.
        labelled: VerSe numbers annotated in every scan; empty: in each scan those that its label holds.
        seed: of the shuffle.
        overwrite: replace an existing datalist.
        label_scheme: of the numbers in the labels; those in the datalist are VerSe's.

    Raises:
        CallError: if the datalist exists or cannot be written, or the pattern is none.
        UserError: naming all labels that cannot be read or are empty; if there are no labelled scans or too few patients, or the pattern
            does not match a name.
    """
    if Path(datalist).exists() and not is_true(overwrite, "overwrite"):
        raise CallError(f"{datalist}: exists already; set --overwrite True to replace it")
    patient_pattern = patient_pattern or PATIENT_PATTERN
    try:
        groups = re.compile(patient_pattern).groups
    except re.error as error:
        raise CallError(f"patient_pattern '{patient_pattern}' is no regular expression ({error})") from None
    if not groups:
        raise CallError(f"patient_pattern '{patient_pattern}' needs a group, (...), around the part that names the patient")
    check_writable(str(Path(datalist).parent), "datalist")
    root = Path(dataset_dir)
    patients: dict[str, list[dict]] = defaultdict(list)
    unpaired, problems = [], []
    for image in tqdm([path for path in find_images(root) if not is_in_label_folder(path)], desc="prepare", unit="scan"):
        label = find_label(image)
        if label is None:
            unpaired.append(image)
            continue
        match = re.match(patient_pattern, case_name(image))
        if not match or match.group(1) is None:
            raise UserError(f"{image}: patient_pattern '{patient_pattern}' does not match its name")
        try:
            values = _values(label, label_scheme)
        except UserError as error:
            problems.append(str(error))
            continue
        if not {*values, *labelled}:
            problems.append(f"{label}: holds no structure. Leave it out, or list with --labelled what it was searched for.")
        patients[match.group(1)].append(
            {
                "image": image.relative_to(root).as_posix(),
                "label": label.relative_to(root).as_posix(),
                "source": _source(image),
                "labelled": sorted({*values, *labelled}),
                "patient": match.group(1),
            }
        )
    if problems:
        more = [f"and {len(problems) - MAX_LINES} more"] if len(problems) > MAX_LINES else []
        raise UserError("\n".join([*problems[:MAX_LINES], *more]))
    if not patients:
        raise UserError(
            f"{root}: {len(unpaired)} scans, none with a label. A label of a.nii.gz is a_seg.nii.gz, or labels/a.nii.gz beside images/."
        )
    counts = {s: max(1, round(f * len(patients))) if f > 0 else 0 for s, f in zip(SPLITS[1:], (validation_fraction, testing_fraction))}
    if len(patients) <= sum(counts.values()):
        needed = sum(counts.values()) + 1
        raise UserError(f"{root}: {len(patients)} patients with labels, {needed} are needed for these splits. Is --patient_pattern right?")
    names = sorted(patients)
    random.Random(seed).shuffle(names)
    splits = {}
    for split in ("testing", "validation"):
        chosen, names = names[: counts[split]], names[counts[split] :]
        splits[split] = chosen
    splits["training"] = names
    write_datalist({s: [e for p in sorted(splits[s]) for e in patients[p]] for s in SPLITS}, datalist)
    sizes = (f"{s} {len(splits[s])} patients with {sum(len(patients[p]) for p in splits[s])} scans" for s in SPLITS)
    print(f"{datalist}: {', '.join(sizes)}; {len(unpaired)} scans have no label")
    return Path(datalist)


def _values(label: Path, scheme: str) -> list[int]:
    """VerSe numbers that a label file holds.

    Raises:
        UserError: if it cannot be read, or holds other numbers.
    """
    present = np.unique(encode(read_volume(label).data, str(label), scheme))
    return [label_table()[c].verse for c in present if c]


def _source(image: Path) -> str:
    """The folder that a scan lies in, or the one above where that says nothing: `images`."""
    folder = image.absolute().parent
    return (folder.parent if folder.name in LABEL_FOLDERS else folder).name
