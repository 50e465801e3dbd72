"""Add S1, as the network sees it, to labels that lack it: a command that prepares a dataset for training.

Labels are read and written in VerSe numbers: SPIDER has none for S1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from scripts.common.errors import CallError, UserError, shown
from scripts.common.preflight import check_weights, check_writable, is_true
from scripts.data.datalist import read_datalist, write_datalist
from scripts.data.sacrum import find_sacrum
from scripts.data.volumes import read_volume
from scripts.labels import label_table, structure
from scripts.levels.restore import ClassLogits, restore_label_map
from scripts.transforms import EncodeLabelsd, MaskLayout, write_label_map

DATALIST = "datalist.json"


def label_sacrum(
    dataset_dir: str | Path,
    output_dir: str | Path,
    datalist: str | Path,
    inference: ConfigParser,
    weights: str | Path,
    allow_outside: bool | str = False,
    overwrite: bool | str = False,
    read_scheme: str = "verse",
) -> Path:
    """Write the training labels that can be given an S1 to `output_dir`, with a datalist that names these and, where they are, all others.

    What somebody labelled is never changed: S1 is added where there is background, in scans whose `labelled` lacks it (`find_sacrum`).
    Validation and testing scans keep their labels. The paths of the datalist are absolute: train with `--allow_outside True`.

    Args:
        dataset_dir: the folder that the paths of the datalist start from.
        output_dir: where to; another folder than `dataset_dir`.
        datalist: JSON file; empty: `datalist.json` in `dataset_dir`.
        inference: the parsed inference.yaml for the keys `image` and `label`.
        weights: a state_dict.
        allow_outside: see `read_datalist`.
        overwrite: replace what an earlier call has written.
        read_scheme: `verse`; others have no number for S1, or share it.

    Returns:
        The datalist.

    Raises:
        CallError: if `output_dir` is `dataset_dir` or has a datalist already, for another `read_scheme`, if there is nothing to train on,
            the label table has no S1, or as `check_weights`.
        UserError: as `read_datalist` and `EncodeLabelsd`, and for two scans outside `dataset_dir` with one name.
    """
    if "S1" not in {s.name for s in label_table()}:
        raise CallError("label_sacrum: the label table of --labels has no S1")
    source, target = Path(datalist or Path(dataset_dir) / DATALIST), Path(output_dir)
    if read_scheme != "verse":
        raise CallError(f"label_sacrum reads and writes VerSe numbers only, not --read_scheme {read_scheme}")
    if target.resolve() == Path(dataset_dir).resolve():
        raise CallError(f"{target}: holds the labels themselves; set --sacrum_dir to another folder")
    if (target / DATALIST).exists() and not is_true(overwrite, "overwrite"):
        raise CallError(f"{target / DATALIST}: exists already; set --overwrite True to replace it and the labels beside it")
    splits = read_datalist(source, dataset_dir, allow_outside=allow_outside)
    if not any(entry.get("label") for entry in splits.get("training", [])):
        raise CallError(f"{source}: no labelled scans under 'training'")
    network = inference.get_parsed_content("network")
    network.load_state_dict(check_weights(str(weights), "ckpt_path", network))
    network.eval()
    check_writable(str(target), "sacrum_dir")
    preprocessing, device = inference.get_parsed_content("preprocessing"), inference.get_parsed_content("device")
    encoding, s1 = EncodeLabelsd(), structure("S1")
    layout, written = MaskLayout(str(target), str(dataset_dir)), set()
    for entry in tqdm(splits["training"], desc="label_sacrum", unit="scan"):
        if not entry.get("label") or s1.verse in entry.get("labelled", []):
            continue
        scan = encoding(preprocessing(dict(entry)))
        image, label = scan["image"], scan["label"]
        if scan["labelled"][s1.channel]:
            continue
        sacrum = find_sacrum(
            image.as_tensor(), label[0].numpy(), image.pixdim.tolist(), lambda patch: network.delineate(patch.to(device)).cpu()
        )
        if sacrum is None:
            continue
        path = layout.filename(entry["image"])
        if path in written:
            where = f"{shown(entry['image'])}: lies outside {shown(dataset_dir)}"
            raise UserError(f"{where} and has the name of another scan; rename one of them")
        _write(entry["label"], sacrum, np.asarray(image.affine), s1.verse, path)
        labelled = [s.verse for s in label_table()[1:] if scan["labelled"][s.channel]]
        entry.update(label=str(path.absolute()), labelled=sorted([*labelled, s1.verse]))
        written.add(path)
    write_datalist(splits, target / DATALIST)
    print(f"{shown(target / DATALIST)}: S1 added to {len(written)} of {len(splits['training'])} training scans")
    return target / DATALIST


def _write(label: str, sacrum: np.ndarray, affine: np.ndarray, value: int, path: Path) -> None:
    """Write the label with `value` where `sacrum` (boolean, with its affine) lies on its background."""
    own = read_volume(label)
    logits = ClassLogits.of(torch.from_numpy(np.stack([~sacrum, sacrum]).astype(np.float32)))
    added = restore_label_map(logits, affine, own.affine, own.data.shape).numpy() > 0
    write_label_map(np.where(added & (own.data == 0), value, own.data), own.affine, path)
