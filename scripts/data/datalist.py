"""Find scans, pair them with labels, and read or write the datalist that lists them.

A datalist is a JSON object with one list per split ("training", "validation", "testing"). An entry holds `image` and, for training
and evaluation, `label` (paths relative to `dataset_dir`), `source` (where it comes from), `labelled` (the VerSe numbers annotated in
that scan; an unlisted structure may be visible without being labelled) and, optionally, `patient`.
"""

from __future__ import annotations

import glob
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scripts.common.errors import CallError, UserError, did_you_mean, shown, similar_path
from scripts.common.files import write_whole
from scripts.common.preflight import is_true
from scripts.data.dicom import holds_series, is_dicom_file
from scripts.data.splits import check_added, patients_in_two_splits
from scripts.data.volumes import read_volume
from scripts.labels import channels_from_verse, encode, label_table

SPLITS = ("training", "validation", "testing")
FIELDS = {"image": str, "label": str, "source": str, "patient": (str, int), "labelled": list}  # of an entry; others are not read
SUFFIXES = (".nii.gz", ".nii", ".mha", ".nrrd")
LABEL_POSTFIX = "_seg"
# `sub-01` of BIDS names, else the name without the contrast at its end: 1_t1 and 1_T2_SPACE are one patient
PATIENT_PATTERN = r"(sub-[^_]+(?=_|$)|.+?(?=(?:_(?i:t[12](?:w|_space)?|stir|tirm|pdw?|mr|dixon|water|fat))*$))"
LABEL_FOLDERS = {"images": ("labels", "masks"), "imagesTr": ("labelsTr",)}  # SPIDER and nnU-Net keep labels in a folder of their own


def case_name(path: str | Path) -> str:
    """File name without its image suffix; other dots stay (`a/b.v2_T2w.nii.gz` -> `b.v2_T2w`). A DICOM folder's own name."""
    name = Path(path).name
    return next((name[: -len(s)] for s in SUFFIXES if name.lower().endswith(s)), name)


def has_twin(path: Path) -> bool:
    """True if another scan beside it has the same stem: `a.mha` with an `a.nii.gz`, or with a folder `a` that holds a DICOM series."""
    stem = path.parent / case_name(path)
    if stem == path:
        return False  # a folder keeps its name
    files = (stem.with_name(stem.name + suffix) for suffix in SUFFIXES)
    return any(f != path and os.path.lexists(f) for f in files) or (stem.is_dir() and is_dicom_folder(stem))


def is_dicom_folder(folder: str | Path) -> bool:
    """True if a file directly in `folder` is a DICOM file (`DICM` after the 128-byte preamble)."""
    other = (*SUFFIXES, ".json", ".png")
    try:
        files = (path for path in sorted(Path(folder).iterdir()) if path.is_file() and not path.name.lower().endswith(other))
        return any(
            is_dicom_file(path) for path in islice(files, 20)
        )  # exports do not mix, but a note or an index may lie beside the slices
    except PermissionError:
        return True  # whether it is one cannot be seen: the scan fails, and is not passed over


def find_images(dataset_dir: str | Path) -> list[Path]:
    """Every scan in `dataset_dir` and below, sorted: image files whose stem does not end in `_seg`, DICOM series folders, and folders
    that cannot be looked into, which are for the reader to complain about. Links to folders are followed, each folder is searched once.

    Raises:
        CallError: if the folder does not exist or holds no scan.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise CallError(f"{root}: no such folder. Set --dataset_dir to the folder that holds the scans.{similar_path(root)}")
    found: list[Path] = []
    closed: list[OSError] = []
    for folder, files in _folders(root, closed.append):
        images = [Path(folder, f) for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(".")]
        found += [path for path in images if not case_name(path).endswith(LABEL_POSTFIX)]
        if len(files) > len(images) and is_dicom_folder(folder):
            found.append(Path(folder))
    found += [Path(error.filename) for error in closed]
    if not found:
        raise CallError(f"{root}: no scans found. Expected {', '.join(SUFFIXES)} files or folders with a DICOM series.")
    return sorted(found)


def find_masks(dataset_dir: str | Path) -> list[Path]:
    """Every label file in `dataset_dir` and below, sorted: image files whose stem ends in `_seg`, or in a folder of labels beside `images`.

    Raises:
        CallError: if the folder does not exist or holds none.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise CallError(f"{root}: no such folder. Set --dataset_dir to the folder that holds the masks.{similar_path(root)}")
    files = [Path(folder, name) for folder, names in _folders(root, _refuse) for name in names if name.lower().endswith(SUFFIXES)]
    found = [f for f in files if not f.name.startswith(".") and (case_name(f).endswith(LABEL_POSTFIX) or is_in_label_folder(f))]
    if not found:
        raise CallError(f"{root}: no masks found. Expected {', '.join(LABEL_POSTFIX + suffix for suffix in SUFFIXES)} files.")
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be looked into ({error.strerror}). Change its permissions, or leave it out.")


def _folders(root: Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
    """Each folder that is not hidden with the names of its files; linked ones last, and once: links may lead in a circle."""
    visited: set[str] = set()
    waiting = [str(root)]
    while waiting:
        links = []
        for start in waiting:
            for folder, subfolders, files in os.walk(start, onerror=onerror):
                subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
                if (real := os.path.realpath(folder)) in visited:
                    subfolders[:] = []
                    continue
                visited.add(real)
                links += [path for name in subfolders if os.path.islink(path := os.path.join(folder, name))]
                yield folder, files
        waiting = links


def find_label(image: str | Path) -> Path | None:
    """The label file of `image`, by name.

    For `<case>_<contrast>`: `<case>_<contrast>_seg` beside it, or `<case>_seg`, unless `<case>` is a scan itself; or the same name in a
    sibling folder `labels` or `masks` of `images` (`labelsTr` of `imagesTr`, where nnU-Net's `_0000` is left out).
    """
    image = Path(image)
    stem = case_name(image)
    candidates = [image.parent / f"{stem}{LABEL_POSTFIX}"]
    case = image.parent / stem.rsplit("_", 1)[0]
    if "_" in stem and not _file(case):
        candidates.append(case.with_name(f"{case.name}{LABEL_POSTFIX}"))
    folders = [image.parent.parent / folder for folder in LABEL_FOLDERS.get(image.parent.name, ())]
    candidates += [folder / stem for folder in folders]
    if image.parent.name == "imagesTr":
        candidates += [folder / re.sub(r"_\d{4}$", "", stem) for folder in folders]
    return next((file for candidate in candidates if (file := _file(candidate))), None)


def find_image(label: Path) -> Path | None:
    """The scan of a label file, by name: `find_label`, backwards."""
    stem = case_name(label).removesuffix(LABEL_POSTFIX)
    folders = [label.parent, *(label.parent.parent / images for images, labels in LABEL_FOLDERS.items() if label.parent.name in labels)]
    near = (path for folder in folders for path in sorted(folder.glob(f"{glob.escape(stem)}*")) if path.name.lower().endswith(SUFFIXES))
    return next((path for path in near if path != label and find_label(path) == label), None)


def _file(stem: Path) -> Path | None:
    """The image file of that stem, if there is one."""
    return next((path for suffix in SUFFIXES if (path := stem.with_name(stem.name + suffix)).is_file()), None)


def is_in_label_folder(path: Path) -> bool:
    """True for `masks/1_t2.mha` beside a folder `images`, and the like."""
    return any(path.parent.name in labels and (path.parent.parent / images).is_dir() for images, labels in LABEL_FOLDERS.items())


def read_datalist(
    datalist: str | Path, dataset_dir: str | Path, must_exist: bool = True, allow_outside: bool | str = False
) -> dict[str, list[dict]]:
    """Splits of a datalist, with absolute paths.

    Args:
        datalist: JSON file.
        dataset_dir: the folder that its paths start from.
        must_exist: whether a listed file that does not exist is an error.
        allow_outside: whether files may lie outside `dataset_dir`, by an absolute path or by `..`. Links within the folder are
            followed wherever they lead.

    Raises:
        CallError: if the file is missing.
        UserError: if it is not JSON, has no list of entries, holds something else where a name or a list belongs, or names a file
            that does not exist or lies outside.
    """
    datalist, root = Path(datalist), Path(dataset_dir).absolute()
    if not datalist.is_file():
        hint = "Write one with: python -m monai.bundle run prepare --config_file configs/tools.yaml"
        raise CallError(f"{datalist}: no such datalist. {hint}{similar_path(datalist)}")
    try:
        content = json.loads(datalist.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the latter for brackets in brackets in brackets
        raise UserError(f"{datalist}: not a JSON file ({error})") from None
    splits = {k: v for k, v in content.items() if isinstance(v, list)} if isinstance(content, dict) else {}
    if not any(splits.values()):
        raise UserError(f"{datalist}: holds no list of scans. Expected one of the keys {', '.join(SPLITS)}.")
    resolve = partial(_resolve, root=root, datalist=datalist, must_exist=must_exist, allow_outside=is_true(allow_outside, "allow_outside"))
    return {split: [resolve(entry) for entry in entries] for split, entries in splits.items()}


def _resolve(entry: dict, root: Path, datalist: Path, must_exist: bool, allow_outside: bool) -> dict:
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        raise UserError(f"{datalist}: every entry needs an 'image' path, got {_short(entry)}")
    entry = {key: value for key, value in entry.items() if value is not None}
    for key, kind in FIELDS.items():
        if key in entry and (not isinstance(entry[key], kind) or isinstance(entry[key], bool)):
            word = "a list of numbers" if kind is list else "text"
            raise UserError(f"{datalist}: '{key}' of {shown(entry['image'])} must be {word}, got {_short(entry[key])}")
    if any(type(value) is not int for value in entry.get("labelled", [])):
        raise UserError(f"{datalist}: 'labelled' of {shown(entry['image'])} must be a list of numbers, got {_short(entry['labelled'])}")
    for key in ("image", "label"):
        if entry.get(key):
            path = Path(os.path.normpath(root / entry[key]))
            if not (allow_outside or path.is_relative_to(os.path.normpath(root))):
                raise UserError(f"{datalist}: {key} {shown(path)} lies outside dataset_dir ({root}). Set --allow_outside True if it may.")
            if must_exist and not os.path.exists(path):  # false, where Path.exists raises, for a text that cannot be a path
                raise UserError(f"{datalist}: {key} {shown(path)} does not exist. Is dataset_dir ({root}) the folder its paths start from?")
            entry[key] = str(path)
    channels_from_verse(entry.get("labelled") or [], f"{datalist}: 'labelled' of {entry['image']}")
    return entry


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:80] + "..."


def training_entries(
    datalist: str | Path,
    dataset_dir: str | Path,
    also: Sequence[str | Path] = (),
    repeat: Mapping[str, int] | None = None,
    allow_outside: bool | str = False,
) -> list[dict]:
    """Labelled entries to train on.

    Args:
        datalist: the first datalist.
        dataset_dir: the folder that its paths start from.
        also: more folders, each with a `datalist.json`, whose training scans are added.
        repeat: how often the scans of a `source` occur in an epoch; 1 for a source that is not named, 0 leaves it out.
        allow_outside: see `read_datalist`.

    Raises:
        CallError, UserError: as `split_entries`, for a source that no scan has, and for a patient or a scan in two splits.
    """
    entries: list[dict] = []
    held_back: dict[str, list[dict]] = {}  # of the first datalist
    for file, folder in [(datalist, dataset_dir), *((Path(folder) / "datalist.json", folder) for folder in also)]:
        added = split_entries(file, folder, "training", allow_outside)
        splits = read_datalist(file, folder, must_exist=False, allow_outside=allow_outside)
        if problems := patients_in_two_splits({split: splits.get(split, []) for split in SPLITS}):  # other splits train and choose nothing
            raise UserError("\n".join(f"{file}: {problem}" for problem in problems))
        if entries:
            check_added(added, file, held_back, datalist)
        else:
            held_back = {split: splits.get(split, []) for split in SPLITS[1:]}
        entries += added
    repeat = repeat or {}
    sources = {e["source"] for e in entries if e.get("source")}
    if any(not isinstance(n, int) or n < 0 for n in repeat.values()):
        raise CallError(f"repeat: whole numbers are needed, got {repeat}")
    if set(repeat) - sources:
        raise CallError(
            f"repeat: no training scan has the source {', '.join(sorted(set(repeat) - sources))}; there is {', '.join(sorted(sources))}"
        )
    return [entry for entry in entries for _ in range(repeat.get(entry.get("source", ""), 1))]


def split_entries(datalist: str | Path, dataset_dir: str | Path, split: str, allow_outside: bool | str = False) -> list[dict]:
    """Labelled entries of one split, for training and evaluation; for `allow_outside` see `read_datalist`.

    Raises:
        CallError: if the datalist or the split is missing or empty.
        UserError: as `read_datalist`, and if an entry has no label.
    """
    splits = read_datalist(datalist, dataset_dir, allow_outside=allow_outside)
    if not splits.get(split):
        raise CallError(f"{datalist}: no scans under '{split}'; it has {', '.join(splits)}.{did_you_mean(split, splits)}")
    for entry in splits[split]:
        if not entry.get("label"):
            raise UserError(f"{datalist}: {entry['image']} under '{split}' has no label")
    return splits[split]


def inference_entries(
    dataset_dir: str | Path, datalist: str | Path = "", image: str | Path = "", split: str = "", allow_outside: bool | str = False
) -> list[dict]:
    """What to segment, each scan once: one `image`, else a `datalist` (all splits, or one), else every scan in `dataset_dir` and below.

    A listed scan that does not exist is left to the reader, unless none of them does. For `allow_outside` see `read_datalist`.

    Raises:
        CallError: if nothing is there to be segmented.
        UserError: as `read_datalist`.
    """
    if split and not datalist:
        raise CallError(f"--split {split} picks a part of a datalist: set --datalist too")
    if image:
        if not os.path.exists(image):
            raise CallError(f"{image}: no such file. --image takes one scan or a folder with a DICOM series.{similar_path(image)}")
        if os.path.isdir(image) and not is_dicom_folder(image) and not holds_series(image):
            raise CallError(f"{image}: a folder without a DICOM series. --image takes one scan; set --dataset_dir for a folder of scans.")
        return [{"image": str(Path(image).absolute())}]
    if datalist:
        splits = read_datalist(datalist, dataset_dir, must_exist=False, allow_outside=allow_outside)
        if split and split not in splits:
            raise CallError(f"{datalist}: no split '{split}'; it has {', '.join(splits)}.{did_you_mean(split, splits)}")
        images = dict.fromkeys(entry["image"] for name, entries in splits.items() if split in ("", name) for entry in entries)
        if not images:
            raise CallError(f"{datalist}: no scans under '{split}'")
        if not any(os.path.exists(path) for path in images):
            raise CallError(f"{datalist}: {next(iter(images))} does not exist, nor does any other. Is dataset_dir ({dataset_dir}) right?")
        return [{"image": path} for path in images]
    return [{"image": str(path.absolute())} for path in find_images(dataset_dir) if not is_in_label_folder(path)]


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
        UserError: if the datalist exists, a label cannot be read, there are no labelled scans or too few patients, or the pattern does
            not match a name.
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
    root = Path(dataset_dir)
    patients: dict[str, list[dict]] = defaultdict(list)
    for image in tqdm(find_images(root), desc="prepare", unit="scan"):
        label = find_label(image)
        if label is None or is_in_label_folder(image):
            continue
        match = re.match(patient_pattern, case_name(image))
        if not match or match.group(1) is None:
            raise UserError(f"{image}: patient_pattern '{patient_pattern}' does not match its name")
        present = np.unique(encode(read_volume(label).data, str(label), label_scheme))
        values = [label_table()[c].verse for c in present if c]
        patients[match.group(1)].append(
            {
                "image": image.relative_to(root).as_posix(),
                "label": label.relative_to(root).as_posix(),
                "source": image.parent.name if image.parent != root else root.absolute().name,
                "labelled": sorted({*values, *labelled}),
                "patient": match.group(1),
            }
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
    print(f"{datalist}: " + ", ".join(f"{s} {len(splits[s])} patients" for s in SPLITS))
    return Path(datalist)


def write_datalist(splits: dict[str, list[dict]], datalist: str | Path) -> None:
    """Write `splits` as JSON, whole or not at all."""
    write_whole(datalist, lambda partial: partial.write_text(json.dumps(splits, indent=1) + "\n", encoding="utf-8"))
