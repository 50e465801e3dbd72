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

MAX_LINES = 20  # lines about bad labels in a message
SHOWN_PATIENTS = 4  # enough to see if a visit was taken for a patient


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
        validation_fraction, testing_fraction: share of the patients; a split with a share above 0 gets at least one.
        patient_pattern: regular expression; its first group, matched at the start of the scan's name or else of its path from
            `dataset_dir`, with `/`, is the patient. Empty: `PATIENT_PATTERN` on the name, or the folder where patients have one each.
            Scans that share a label, are copies of each other, or whose names only differ in the contrast belong to one patient.
        labelled: VerSe numbers annotated in every scan; empty takes those in the label of each scan.
        seed: seed of the shuffle.
        overwrite: replace an existing datalist.
        label_scheme: scheme of the numbers in the labels. The entries name it; the numbers that they list are VerSe's.

    Raises:
        CallError: if the datalist exists or cannot be written, the fractions leave nothing for training, the pattern is invalid, or the
            labels lie outside the folder.
        UserError: naming all scans and labels that cannot be read or that a training would refuse; also if there are no labelled scans
            or too few patients, or the pattern does not match a name.
    """
    if validation_fraction + testing_fraction >= 1:
        raise CallError(f"--validation_fraction {validation_fraction} --testing_fraction {testing_fraction}: nothing is left for training")
    if Path(datalist).exists() and not overwrite:
        raise CallError(f"{datalist}: exists already; set --overwrite True to replace it")
    check_pattern(patient_pattern or PATIENT_PATTERN)
    root = Path(dataset_dir)
    images = find_images(root)
    check_writable(str(Path(datalist).parent), "datalist")
    label_of, drawn = _labels_of(images, root)
    unpaired = [image for image in images if image not in label_of]
    patient_of, folder_of = _patients_of(label_of, root, patient_pattern)
    source_of = {image: root.absolute().name if image in folder_of else _source(image) for image in label_of}
    patients = _entries_of_patients(label_of, patient_of, source_of, root, labelled, label_scheme)
    if not patients:
        hint = "A label of a.nii.gz is a_seg.nii.gz, or labels/a.nii.gz beside images/."
        reason = "; ".join([f"{counted(unpaired, 'scan')}, none with a label", *_uncorrected(drawn)])
        raise UserError(f"{root}: {reason}. {hint}")
    try:
        splits = _split(patients, validation_fraction, testing_fraction, seed)
    except ValueError as error:
        raise UserError(f"{root}: {error}. Is --patient_pattern right?") from None
    scans = {s: [entry for p in sorted(splits[s]) for entry in patients[p]] for s in SPLITS}
    write_datalist(scans, datalist)

    print(shown(f"{datalist}: {counted(patients, 'patient')}, {listed(sorted(patients), SHOWN_PATIENTS)}"))
    for line in _summary(splits, scans, [image.relative_to(root) for image in unpaired], drawn, bool(folder_of)):
        print(shown(f"  {line}"))
    if not patient_pattern and (asked := question(patient_of, root)):
        print(shown(f"{datalist}: {asked}"))
    return Path(datalist)


def _labels_of(images: Sequence[Path], root: Path) -> tuple[dict[Path, Path], list[Path]]:
    """Find the label of each scan that has one.

    Masks that inference has drawn and nobody has corrected are passed over, because the network would learn from itself.

    Returns:
        scan -> label, and the scans beside which such a mask was passed over.

    Raises:
        CallError: if a label lies outside `root`.
    """
    label_of = {image: find_label(image, is_uncorrected) for image in images}
    drawn = [image for image, label in label_of.items() if find_label(image) != label]
    paired = {image: label for image, label in label_of.items() if label}
    if outside := next((label for label in paired.values() if not label.is_relative_to(root)), None):
        raise CallError(f"{root}: its labels lie outside it, in {outside.parent}. Set --dataset_dir to the folder that holds both.")
    return paired, drawn


def _patients_of(label_of: Mapping[Path, Path], root: Path, patient_pattern: str) -> tuple[dict[Path, str], dict[Path, str]]:
    """Find the patient of each scan, see `prepare`.

    Returns:
        scan -> patient, and scan -> folder for the scans whose folder is the patient.

    Raises:
        UserError: if the pattern does not match a name.
    """
    by_name = {image: matched(patient_pattern or PATIENT_PATTERN, image, root) for image in label_of}
    folder_of = {} if patient_pattern else patient_folders(by_name, root)
    contents = {image: tuple(map(sha256_of, [image, *files_of_voxels(image)])) for image in label_of if image.is_file()}
    paths = {} if patient_pattern else without_contrast(label_of)
    return joined(by_name | folder_of, label_of, contents, paths), folder_of


def _summary(
    splits: Mapping[str, Sequence[str]],
    scans: Mapping[str, Sequence[dict]],
    unpaired: Sequence[Path],
    drawn: Sequence[Path],
    by_folder: bool,
) -> list[str]:
    """Return lines on the sizes of the splits (patients and scans), and on what a user may not expect."""
    lines = [f"{s}: {counted(splits[s], 'patient')} with {counted(scans[s], 'scan')}" for s in SPLITS]
    if unpaired:
        lines.append(f"{counted(unpaired, 'scan')} without a label: {listed(unpaired)}")
    lines += _uncorrected(drawn)
    if by_folder:
        lines.append("each folder is taken for a patient, because file names repeat from folder to folder or are only contrasts")
    if not splits["validation"]:
        lines.append("a training needs scans under validation")
    return lines


def _uncorrected(drawn: Sequence[Path]) -> list[str]:
    """Return a line on the scans beside which an uncorrected mask was passed over, if there are any."""
    if not drawn:
        return []
    return [f"{counted(drawn, 'scan')} with an uncorrected mask of this bundle, which is not taken as a label"]


def _entries_of_patients(
    label_of: Mapping[Path, Path],
    patient_of: Mapping[Path, str],
    source_of: Mapping[Path, str],
    root: Path,
    labelled: Sequence[int],
    label_scheme: str,
) -> dict[str, list[dict]]:
    """Make the entries of the datalist, by patient.

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
    problems = [*dict.fromkeys(problems)]  # scans that share a label repeat its problems
    if problems:
        more = [f"and {len(problems) - MAX_LINES} more"] if len(problems) > MAX_LINES else []
        raise UserError("\n".join([*problems[:MAX_LINES], *more]))
    return patients


def _split(patients: Collection[str], validation_fraction: float, testing_fraction: float, seed: int) -> dict[str, list[str]]:
    """Draw the patients of every split at random; a split with a share above 0 gets at least one.

    Raises:
        ValueError: if there are too few patients.
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
    """Return the VerSe numbers in a label file, and its `label_problems`.

    Raises:
        UserError: if the scan or the label cannot be read, or the label holds other numbers.
    """
    channels, problems = label_problems(read_volume(label), str(label), image, read_grid(image), scheme)
    if scheme == "spider" and (read_mask(label, scheme)[0].data != channels).any():  # a training does not read reports
        raise UserError(f"{label}: its report names other levels than its numbers of {scheme} do. Write it in the numbers of verse.")
    return [label_table()[c].verse for c in np.unique(channels) if c], problems


def _source(image: Path) -> str:
    """Return the name of the folder of a scan, or of the folder above it for `images` and for the folders of a BIDS patient."""
    folder = image.absolute().parent
    of_patient = [parent for parent in image.absolute().parents if parent.name.startswith("sub-")]
    if of_patient:
        folder = of_patient[-1].parent
    return (folder.parent if folder.name in LABEL_FOLDERS else folder).name
