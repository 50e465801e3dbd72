"""Add S1, as the network sees it, to labels that lack it: a command that prepares a dataset for training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from scripts.common.errors import CallError, UserError, shown
from scripts.common.preflight import check_weights, check_writable
from scripts.data.datalist import read_datalist, write_datalist
from scripts.data.masks import MaskLayout, write_label_map
from scripts.data.volumes import read_volume
from scripts.labels import check_scheme, decode, encode, label_table, structure
from scripts.levels.restore import ClassLogits, restore_label_map
from scripts.levels.sacrum import find_sacrum
from scripts.transforms import EncodeLabelsd

DATALIST = "datalist.json"


def label_sacrum(
    dataset_dir: str | Path,
    output_dir: str | Path,
    datalist: str | Path,
    inference: ConfigParser,
    weights: str | Path,
    allow_outside: bool = False,
    overwrite: bool = False,
    read_scheme: str = "verse",
) -> Path:
    """Add S1 to the training labels that lack it, and write these labels with a datalist of all scans to `output_dir`.

    Labelled voxels never change: S1 is added to the background of scans whose `labelled` lacks it, where `find_sacrum` finds one.
    All other labels, those of validation and testing scans too, stay where they are. The paths of the datalist are absolute: train with
    `--allow_outside True`.

    Args:
        dataset_dir: the folder that the paths of the datalist start from.
        output_dir: another folder than `dataset_dir`.
        datalist: JSON file; empty: `datalist.json` in `dataset_dir`.
        inference: the parsed inference.yaml for the keys `image` and `label`.
        weights: file with a state_dict.
        allow_outside: see `read_datalist`.
        overwrite: replace the files of an earlier call.
        read_scheme: scheme of the labels whose entries name none; written labels have VerSe numbers.

    Returns:
        path of the new datalist.

    Raises:
        CallError: if `output_dir` is `dataset_dir`, or holds a datalist or a label already that may not be replaced, if there is nothing
            to train on, the label table has no S1, or `check_weights` refuses the weights.
        UserError: as `read_datalist` and `EncodeLabelsd`, and for two scans outside `dataset_dir` with one name.
    """
    source, target = Path(datalist or Path(dataset_dir) / DATALIST), Path(output_dir)
    check_scheme(read_scheme)
    _check(dataset_dir, target, overwrite)
    splits = read_datalist(source, dataset_dir, allow_outside=allow_outside)
    for entry in chain.from_iterable(splits.values()):
        entry.setdefault("label_scheme", read_scheme)
    if not any(entry.get("label") for entry in splits.get("training", [])):
        raise CallError(f"{source}: no labelled scans under 'training'")
    without = _without_s1(splits["training"], target, dataset_dir, overwrite)
    network = inference.get_parsed_content("network")
    network.load_state_dict(check_weights(str(weights), "ckpt_path", network))
    network.eval()
    check_writable(str(target), "sacrum_dir")
    preprocessing, device = inference.get_parsed_content("preprocessing"), inference.get_parsed_content("device")
    encoding, s1, added = EncodeLabelsd(), structure("S1"), 0
    for entry, path in tqdm(without, desc="label_sacrum", unit="scan"):
        scan = encoding(preprocessing(dict(entry)))
        image, label = scan["image"], scan["label"]
        if scan["labelled"][s1.channel]:
            continue
        sacrum = find_sacrum(
            image.as_tensor(), label[0].numpy(), image.pixdim.tolist(), lambda patch: network.delineate(patch.to(device)).cpu()
        )
        if sacrum is None:
            continue
        _write(entry["label"], entry["label_scheme"], sacrum, np.asarray(image.affine), path)
        labelled = [s.verse for s in label_table()[1:] if scan["labelled"][s.channel]]
        entry.update(label=str(path.absolute()), labelled=sorted([*labelled, s1.verse]), label_scheme="verse")
        added += 1
    write_datalist(splits, target / DATALIST)
    print(f"{shown(target / DATALIST)}: S1 added to {added} of {len(splits['training'])} training scans")
    return target / DATALIST


def _check(dataset_dir: str | Path, target: Path, overwrite: bool) -> None:
    """Refuse a call that cannot be carried out, or that would replace labels or a datalist.

    Raises:
        CallError: for such a call.
    """
    if "S1" not in {s.name for s in label_table()}:
        raise CallError("label_sacrum: the label table of --labels has no S1")
    if target.resolve() == Path(dataset_dir).resolve():
        raise CallError(f"{target}: is the dataset's own folder, where labels would be replaced; set --sacrum_dir to another folder")
    if (target / DATALIST).exists() and not overwrite:
        raise CallError(f"{target / DATALIST}: exists already; set --overwrite True to replace it and the labels beside it")


def _without_s1(entries: Sequence[dict], target: Path, dataset_dir: str | Path, overwrite: bool) -> list[tuple[dict, Path]]:
    """Return the labelled entries whose `labelled` lacks S1, each with the path for its label with S1.

    Raises:
        CallError: if a file is at such a path that may not be replaced.
        UserError: for two scans with the same path.
    """
    layout, s1 = MaskLayout(str(target), str(dataset_dir)), structure("S1")
    found: dict[Path, dict] = {}
    for entry in entries:
        if not entry.get("label") or s1.verse in entry.get("labelled", []):
            continue
        path = layout.filename(entry["image"])
        if path in found:
            image = shown(entry["image"])
            twice = f"{image}: is listed twice under 'training'; leave out one of the entries"
            other = f"{image}: lies outside {shown(dataset_dir)} and has the name of another scan; rename one of them"
            raise UserError(twice if found[path]["image"] == entry["image"] else other)
        if os.path.lexists(path) and not overwrite:
            raise CallError(f"{shown(path)}: exists already; set --overwrite True to replace it, or --sacrum_dir to another folder")
        found[path] = entry
    return [(entry, path) for path, entry in found.items()]


def _write(label: str, label_scheme: str, sacrum: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write the label in VerSe numbers, with S1 where `sacrum` (boolean, on the grid of `affine`) covers its background."""
    own = read_volume(label)
    channels = encode(own.data, label, label_scheme)
    logits = ClassLogits.of(torch.from_numpy(np.stack([~sacrum, sacrum]).astype(np.float32)))
    added = restore_label_map(logits, affine, own.affine, own.data.shape).numpy() > 0
    channels[added & (channels == 0)] = structure("S1").channel
    write_label_map(decode(channels, "verse"), own.affine, path)
