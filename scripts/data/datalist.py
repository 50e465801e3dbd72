"""Read or write the datalist that lists scans and labels, and the entries of its splits.

A datalist is a JSON object with one list per split ("training", "validation", "testing"). An entry holds `image` and, for training
and evaluation, `label` (paths relative to `dataset_dir`), `source` (where it comes from), `labelled` (the VerSe numbers annotated in
that scan; an unlisted structure may be visible without being labelled) and, optionally, `patient` and the `label_scheme` of its label.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from scripts.common.errors import CallError, UserError, counted, did_you_mean, shown, similar_path
from scripts.common.files import write_json
from scripts.data.dicom import holds_series
from scripts.data.find import find_images, is_dicom_folder
from scripts.data.leakage import check_added, patients_in_two_splits
from scripts.labels import channels_from_verse, check_scheme

SPLITS = ("training", "validation", "testing")
FIELDS = {
    "image": str,
    "label": str,
    "source": str,
    "patient": (str, int),
    "labelled": list,
    "label_scheme": str,
}  # types of the fields of an entry; others are ignored


def read_datalist(
    datalist: str | Path, dataset_dir: str | Path, must_exist: bool = True, allow_outside: bool = False
) -> dict[str, list[dict]]:
    """Read the splits of a datalist, with absolute paths.

    Args:
        datalist: JSON file.
        dataset_dir: folder that its paths start from.
        must_exist: refuse a listed file that does not exist.
        allow_outside: accept files outside `dataset_dir`, by an absolute path or by `..`. Links within the folder are followed
            wherever they lead.

    Raises:
        CallError: if the file is missing.
        UserError: if it is not JSON, has no list of entries, holds a field of the wrong type, or names a file that does not exist or
            lies outside.
    """
    datalist, root = Path(datalist), Path(dataset_dir).absolute()
    if not root.is_dir():
        raise CallError(f"{dataset_dir}: no such folder. --dataset_dir takes one.{similar_path(dataset_dir)}")
    if not datalist.is_file():
        hint = f"Write one with: python -m monai.bundle run prepare --config_file configs/tools.yaml --dataset_dir {dataset_dir}"
        raise CallError(f"{datalist}: no such datalist. {hint}{similar_path(datalist)}")
    try:
        content = json.loads(datalist.read_text(encoding="utf-8-sig"))  # Windows editors write a byte order mark
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested too deep
        raise UserError(f"{datalist}: not a JSON file ({error})") from None
    splits = {k: v for k, v in content.items() if isinstance(v, list)} if isinstance(content, dict) else {}
    if not any(splits.values()):
        raise UserError(f"{datalist}: holds no list of scans. Expected one of the keys {', '.join(SPLITS)}.")
    resolve = partial(_resolve, root=root, datalist=datalist, must_exist=must_exist, allow_outside=allow_outside)
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
            if must_exist and not os.path.exists(path):  # returns False for a text that cannot be a path, where Path.exists raises
                raise UserError(f"{datalist}: {key} {shown(path)} does not exist. Is dataset_dir ({root}) the folder its paths start from?")
            entry[key] = str(path)
    if "label_scheme" in entry:
        try:
            check_scheme(entry["label_scheme"])
        except CallError as error:
            raise UserError(f"{datalist}: {shown(entry['image'])}: {error}") from None
    channels_from_verse(entry.get("labelled") or [], f"{datalist}: 'labelled' of {shown(entry['image'])}")
    return entry


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:80] + "..."


def training_entries(
    datalist: str | Path,
    dataset_dir: str | Path,
    also: Sequence[str | Path] = (),
    repeat: Mapping[str, int] | None = None,
    allow_outside: bool = False,
) -> list[dict]:
    """Collect the labelled entries to train on.

    Args:
        datalist: the first datalist.
        dataset_dir: folder that its paths start from.
        also: more folders, each with a `datalist.json`, whose training scans are added.
        repeat: number of times that the scans of a `source` occur in an epoch; 1 for a source that is not named, 0 leaves it out.
        allow_outside: see `read_datalist`.

    Raises:
        CallError, UserError: as `split_entries`, for a source that no scan has, and for a patient or a scan in two splits.
    """
    repeat = repeat or {}
    if not isinstance(repeat, Mapping) or any(not isinstance(n, int) or n < 0 for n in repeat.values()):
        raise CallError(f"--repeat {repeat}: a whole number for every source is needed, such as \"{{'mine': 3}}\"")
    entries: list[dict] = []
    held_back: dict[str, list[dict]] = {}  # splits of the first datalist that are not trained on
    for file, folder in [(datalist, dataset_dir), *((Path(folder) / "datalist.json", folder) for folder in also)]:
        added = split_entries(file, folder, "training", allow_outside)
        splits = read_datalist(file, folder, must_exist=False, allow_outside=allow_outside)
        # other splits are not used for training or model choice
        if problems := patients_in_two_splits({split: splits.get(split, []) for split in SPLITS}):
            raise UserError("\n".join(f"{file}: {problem}" for problem in problems))
        if entries:
            check_added(added, file, held_back, datalist)
        else:
            held_back = {split: splits.get(split, []) for split in SPLITS[1:]}
        entries += added
    sources = {e["source"] for e in entries if e.get("source")}
    if set(repeat) - sources:
        raise CallError(
            f"repeat: no training scan has the source {', '.join(sorted(set(repeat) - sources))}; there is {', '.join(sorted(sources))}"
        )
    return [entry for entry in entries for _ in range(repeat.get(entry.get("source", ""), 1))]


def split_entries(datalist: str | Path, dataset_dir: str | Path, split: str, allow_outside: bool = False) -> list[dict]:
    """Read the labelled entries of one split, for training and evaluation; for `allow_outside` see `read_datalist`.

    Raises:
        CallError: if the datalist or the split is missing or empty.
        UserError: as `read_datalist`, and if an entry has no label.
    """
    splits = read_datalist(datalist, dataset_dir, allow_outside=allow_outside)
    if not splits.get(split):
        filled = [name for name, entries in splits.items() if entries]
        hint = did_you_mean(split, filled)
        hint += f" Then call it {split} in the file." if hint and split in SPLITS else ""
        raise CallError(f"{datalist}: no scans under '{split}'; it has {', '.join(filled)}.{hint}")
    for entry in splits[split]:
        if not entry.get("label"):
            raise UserError(f"{datalist}: {shown(entry['image'])} under '{split}' has no label")
    return splits[split]


def inference_entries(
    dataset_dir: str | Path,
    datalist: str | Path = "",
    image: str | Path = "",
    split: str = "",
    allow_outside: bool = False,
    pattern: str = "",
) -> list[dict]:
    """List the scans to segment, each once: one `image`, else a `datalist` (all splits, or one), else all in `dataset_dir` and below.

    A listed scan that does not exist is left to the reader, unless none of them exists. For `allow_outside` see `read_datalist`. A
    `pattern` keeps only scans whose path from `dataset_dir` fits it, such as `*T2*` or `sub-0?/*`, in small letters or capitals.

    Raises:
        CallError: if there is nothing to segment.
        UserError: as `read_datalist`.
    """
    if split and not datalist:
        raise CallError(f"--split {split} picks a part of a datalist: set --datalist too")
    if image:
        if not os.path.exists(image):
            raise CallError(f"{image}: no such file. --image takes one scan or a folder with a DICOM series.{similar_path(image)}")
        if os.path.isdir(image) and not is_dicom_folder(image) and not holds_series(image):
            raise CallError(f"{image}: a folder without a DICOM series. --image takes one scan; set --dataset_dir for a folder of scans.")
        return [{"image": os.path.abspath(image)}]
    if datalist:
        splits = read_datalist(datalist, dataset_dir, must_exist=False, allow_outside=allow_outside)
        if split and split not in splits:
            raise CallError(f"{datalist}: no split '{split}'; it has {', '.join(splits)}.{did_you_mean(split, splits)}")
        images = dict.fromkeys(entry["image"] for name, entries in splits.items() if split in ("", name) for entry in entries)
        if not images:
            raise CallError(f"{datalist}: no scans under '{split}'")
        images = _fitting(images, dataset_dir, pattern)
        if not any(os.path.exists(path) for path in images):
            raise CallError(f"{datalist}: {shown(images[0])} does not exist, nor does any other. Is dataset_dir ({dataset_dir}) right?")
        return [{"image": path} for path in images]
    found = [os.path.abspath(path) for path in find_images(dataset_dir)]
    return [{"image": path} for path in _fitting(found, dataset_dir, pattern)]


def _fitting(images: Iterable[str], dataset_dir: str | Path, pattern: str) -> list[str]:
    """Keep the scans whose path from `dataset_dir` fits the pattern.

    Raises:
        CallError: if none does.
    """
    path_of = {image: os.path.relpath(image, Path(dataset_dir).absolute()).replace(os.sep, "/") for image in images}
    fitting = [image for image, path in path_of.items() if not pattern or fnmatchcase(path.lower(), pattern.lower())]
    if not fitting:
        first = shown(next(iter(path_of.values())))
        raise CallError(f"--pattern {pattern}: fits none of {counted(path_of, 'scan')}, such as {first}. It takes * and ?, as '*T2*'.")
    return fitting


def write_datalist(splits: dict[str, list[dict]], datalist: str | Path) -> None:
    """Write `splits` as JSON, whole or not at all."""
    write_json(datalist, splits)
