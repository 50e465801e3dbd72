"""Write a datalist for a folder of scans with labels: paired by name, split by patient."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scripts.common.errors import CallError, UserError, counted, listed, shown
from scripts.common.files import sha256_of
from scripts.common.preflight import check_writable
from scripts.data.check_labels import label_problems
from scripts.data.datalist import SPLITS, write_datalist
from scripts.data.find import LABEL_FOLDERS, files_of_voxels, find_images, find_label
from scripts.data.masks import read_mask
from scripts.data.own_masks import is_uncorrected
from scripts.data.patients import PATIENT_PATTERN, check_pattern, joined, matched, patient_folders, question, without_contrast
from scripts.data.volumes import read_grid, read_volume
from scripts.labels import label_table

MAX_LINES = 20  # about bad labels
SHOWN_PATIENTS = 4  # so that a visit that was taken for a patient is seen


def prepare(
    dataset_dir: str | Path,
    datalist: str | Path,
    validation_fraction: float = 0.15,
    testing_fraction: float = 0.15,
    patient_pattern: str = "",
    labelled: Sequence[int] = (),
    seed: int = 0,
    overwrite: bool = False,
    label_scheme: str = "verse",
) -> Path:
    """Write a datalist for a folder of scans with labels: paired by name, split by patient, the same for the same seed.

    Args:
        dataset_dir: folder with scans and labels, see `find_label` for the names.
        datalist: the file to write.
        validation_fraction, testing_fraction: share of patients; each split that is asked for gets at least one.
        patient_pattern: regular expression; its first group, matched at the start of the scan's name or else of its path from
            `dataset_dir`, with `/`, is the patient. Empty: `PATIENT_PATTERN` on the name, or the folder where patients have one each.
            Scans that share a label, are copies of each other, or differ in the contrast within their names alone are those of one
            patient.
        labelled: VerSe numbers annotated in every scan; empty: in each scan those that its label holds.
        seed: of the shuffle.
        overwrite: replace an existing datalist.
        label_scheme: of the numbers in the labels; the entries name it, and list VerSe's.

    Raises:
        CallError: if the datalist exists or cannot be written, the fractions leave nothing for training, the pattern is none, or the
            labels lie outside the folder.
        UserError: naming all scans and labels that cannot be read or that a training would refuse; if there are no labelled scans or too
            few patients, or the pattern does not match a name.
    """
    if validation_fraction + testing_fraction >= 1:
        raise CallError(f"--validation_fraction {validation_fraction} --testing_fraction {testing_fraction}: nothing is left for training")
    if Path(datalist).exists() and not overwrite:
        raise CallError(f"{datalist}: exists already; set --overwrite True to replace it")
    check_pattern(patient_pattern or PATIENT_PATTERN)
    root = Path(dataset_dir)
    images = find_images(root)
    check_writable(str(Path(datalist).parent), "datalist")
    label_of = {image: find_label(image, is_uncorrected) for image in images}
    drawn = [image for image, label in label_of.items() if find_label(image) != label]  # the network would learn from itself
    unpaired = [image for image, label in label_of.items() if not label]
    paired = {image: label for image, label in label_of.items() if label}
    if outside := next((label for label in paired.values() if not label.is_relative_to(root)), None):
        raise CallError(f"{root}: its labels lie outside it, in {outside.parent}. Set --dataset_dir to the folder that holds both.")
    patient_of = {image: matched(patient_pattern or PATIENT_PATTERN, image, root) for image in paired}
    folder_of = {} if patient_pattern else patient_folders(patient_of, root)
    copies = {image: tuple(map(sha256_of, [image, *files_of_voxels(image)])) for image in paired if image.is_file()}
    patient_of = joined(patient_of | folder_of, paired, copies, {} if patient_pattern else without_contrast(paired))
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
        without += f" ({listed(image.relative_to(root) for image in unpaired)})"
    unusable = "" if splits["validation"] else "; a training needs scans under validation"
    by_folder = "; the names repeat, so a folder is a patient" if folder_of else ""
    some = f"patients: {listed(sorted(patients), SHOWN_PATIENTS)}"
    print(shown(f"{datalist}: {', '.join(sizes)}; {some}; {without}{_passed_over(drawn)}{by_folder}{unusable}"))
    if not patient_pattern and (asked := question(patient_of, root)):
        print(shown(f"{datalist}: {asked}"))
    return Path(datalist)


def _passed_over(drawn: Sequence[Path]) -> str:
    """What to say of scans beside which there is a mask that inference has drawn and nobody has corrected."""
    return f"; uncorrected masks of this bundle are no labels, {counted(drawn, 'scan')} with such a mask" if drawn else ""


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
        UserError: naming all scans and labels that cannot be read, and all `label_problems`.
    """
    patients: dict[str, list[dict]] = defaultdict(list)
    problems = []
    for image, label in tqdm(label_of.items(), desc="prepare", unit="scan"):
        try:
            values, of_label = _values(image, label, label_scheme)
        except UserError as error:
            problems.append(str(error))
            continue
        problems += of_label
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
        some = listed(sorted(patients), SHOWN_PATIENTS)
        raise ValueError(f"{counted(patients, 'patient')} with labels ({some}), {sum(counts.values()) + 1} are needed for these splits")
    names = sorted(patients)
    random.Random(seed).shuffle(names)
    splits = {}
    for split in ("testing", "validation"):
        splits[split], names = names[: counts[split]], names[counts[split] :]
    return {**splits, "training": names}


def _values(image: Path, label: Path, scheme: str) -> tuple[list[int], list[str]]:
    """VerSe numbers that a label file holds, and its `label_problems`.

    Raises:
        UserError: if the scan or the label cannot be read, or the label holds other numbers.
    """
    channels, problems = label_problems(read_volume(label), str(label), image, read_grid(image), scheme)
    if scheme == "spider" and (read_mask(label, scheme)[0].data != channels).any():  # a training reads no reports
        raise UserError(f"{label}: its report names other levels than its numbers of {scheme} do. Write it in the numbers of verse.")
    return [label_table()[c].verse for c in np.unique(channels) if c], problems


def _source(image: Path) -> str:
    """The folder that a scan lies in, or the one above where that says nothing: `images`, and the folders of a patient of BIDS."""
    folder = image.absolute().parent
    of_patient = [parent for parent in image.absolute().parents if parent.name.startswith("sub-")]
    if of_patient:
        folder = of_patient[-1].parent
    return (folder.parent if folder.name in LABEL_FOLDERS else folder).name
