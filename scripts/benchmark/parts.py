"""What the benchmark can measure: a function per part of the results."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch

from scripts.benchmark.inference import FINE
from scripts.benchmark.page import KNOBS
from scripts.benchmark.process import Child, run_child
from scripts.common.cores import cores
from scripts.common.errors import UserError
from scripts.data.find import LABEL_POSTFIX, case_name, find_label
from scripts.data.masks import write_label_map
from scripts.data.resampling import resample_axes
from scripts.data.volumes import read_volume
from scripts.inferers import has_bfloat16
from scripts.labels import encode, label_table
from scripts.metrics import score_structures
from scripts.phantoms.phantom import write_cohort

SCANS = {  # of phantoms: slices, posterior-anterior, inferior-superior; in-plane and slice spacing in mm
    "thick_slices": {"shape": (20, 320, 320), "spacing_mm": (0.8, 4.0), "order": "PIR"},
    "isotropic": {"shape": (77, 381, 381), "spacing_mm": (1.0, 1.0), "order": "RAS"},
}
LARGE_MM, LARGE_SHAPE = (300, 384, 384), (400, 512, 512)  # view and voxels of the large scan
ACCURACY_PHANTOMS = 6  # of each grid of SCANS
TRAINING_PHANTOMS = 8
GPU_STEPS = 20  # steps measured on a GPU for each one on a CPU, where they take longer
NNUNET_TIMEOUT_S = 1800


class Bench(NamedTuple):
    """Arguments of every part."""

    bundle_root: str
    work: Path  # folder for masks and phantoms, removed at the end
    scans: dict[str, Path]  # name -> file
    repeats: int
    folder_size: int
    many_scans: int
    training_steps: int
    nnunet_python: str


def _measure(bench: Bench, name: str, **options: Any) -> dict[str, Any]:
    """Return the result of a function of `runs`, called in a process of its own, with the `peak_mib` of that process."""
    options |= {"bundle_root": bench.bundle_root}
    child = run_child([sys.executable, "-m", "scripts.benchmark.runs", name, json.dumps(options)], bench.bundle_root)
    return {**json.loads(child.output.splitlines()[-1]), "peak_mib": child.peak_mib}


def phantoms(folder: Path) -> dict[str, Path]:
    """Draw a phantom for each grid of `SCANS` in `folder`; return the files by the name of the grid."""
    found = {}
    for name, options in SCANS.items():
        write_cohort(folder / name, training=0, validation=1, testing=0, seed=11, contrast="T2w", view="L3", **options)
        found[name] = next((folder / name / "validation").glob("*_T2w.nii.gz"))
    return found


def grid_of(scan: Path) -> dict[str, list]:
    """Return the `shape` and the `spacing_mm` of a scan."""
    volume = read_volume(scan)
    return {"shape": list(volume.data.shape), "spacing_mm": np.round(nib.affines.voxel_sizes(volume.affine), 2).tolist()}


def _of_every_scan(bench: Bench, measure: Callable[[str, Path], dict]) -> dict[str, dict]:
    return {name: measure(name, scan) for name, scan in bench.scans.items()}


def ours(bench: Bench) -> dict[str, dict]:
    """Measure inference step by step in a warm process, and the whole command from a cold shell."""

    def measure(name: str, scan: Path) -> dict:
        options = {"scan": str(scan), "output_dir": str(bench.work / "ours" / name), "repeats": bench.repeats}
        result = _measure(bench, "segment", spawned=time.time(), **options)
        call = ["--image", str(scan), "--output_dir", str(bench.work / "cold" / name), "--overwrite", "True"]
        cold, watched = _command(bench, call), _command(bench, call, with_children=True)
        return {**_scored(scan, result), "cold_s": cold.seconds, "cold_peak_mib": watched.peak_mib}

    return _of_every_scan(bench, measure)


def _command(bench: Bench, options: Sequence[str], with_children: bool = False, processes: int = 1) -> Child:
    start, configs = [sys.executable], "configs/inference.yaml"
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        configs = f"['{configs}','configs/multi_gpu_inference.yaml']"
    command = [*start, "-m", "monai.bundle", "run", "--config_file", configs, *options]
    return run_child(command, bench.bundle_root, with_children=with_children)


def _scored(scan: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Return the result without its mask, but with the mean Dice of that mask if the scan has a label."""
    mask = result.pop("mask")
    label = find_label(scan)
    return result if label is None else {**result, "dice": _dice(label, mask)}


def _dice(label: Path, mask: str) -> float:
    """Return the mean Dice of the structures of a label."""
    reference, found = read_volume(label), read_volume(mask)
    rows = score_structures(encode(reference.data, str(label)), encode(found.data), nib.affines.voxel_sizes(reference.affine))
    return float(np.mean([row["dice"] for row in rows]))


def plain(bench: Bench) -> dict[str, dict]:
    """Measure the same weights used the way of the model zoo."""
    return _of_every_scan(
        bench,
        lambda name, scan: _scored(
            scan, _measure(bench, "plain", scan=str(scan), output_dir=str(bench.work / "plain" / name), repeats=bench.repeats)
        ),
    )


def accuracy(bench: Bench) -> dict[str, dict[str, list[float]]]:
    """Compare the Dice of this bundle and of the plain way on `ACCURACY_PHANTOMS` phantoms of each grid of `SCANS`."""
    found = {}
    for name, options in SCANS.items():
        folder = bench.work / "accuracy" / name
        write_cohort(folder, training=0, validation=ACCURACY_PHANTOMS, testing=0, seed=11, contrast="T2w", view="L3", **options)
        scans = sorted((folder / "validation").glob("*_T2w.nii.gz"))
        found[name] = {}
        for way in ("ours", "plain"):
            masks = _measure(bench, "masks", scans=[str(s) for s in scans], way=way, output_dir=str(folder / way))["masks"]
            found[name][way] = [_dice(find_label(scan), mask) for scan, mask in zip(scans, masks)]
    return found


def nnunet(bench: Bench) -> dict[str, Any]:
    """Measure nnU-Net's predictor with its own plan and random weights; `missing` says why there are no figures."""
    if not Path(bench.nnunet_python).is_file():
        return {"missing": "nnunetv2 was not installed: bash tests/clients/setup_nnunet.sh"}

    def measure(name: str, scan: Path) -> dict:
        folder = bench.work / "nnunet" / name
        label = find_label(scan)
        if label is None:
            raise UserError(f"{scan}: nnU-Net's planner needs a label. Put {case_name(scan)}{LABEL_POSTFIX}.nii.gz beside it.")
        reference = read_volume(label)
        write_label_map(encode(reference.data, str(label)), reference.affine, folder / "label.nii.gz")
        options = {"scan": str(scan), "label": str(folder / "label.nii.gz"), "folder": str(folder), "classes": len(label_table())}
        script = str(Path(__file__).with_name("nnunet.py"))
        child = run_child([bench.nnunet_python, script, json.dumps(options)], str(folder), NNUNET_TIMEOUT_S)
        return {**json.loads(child.output.splitlines()[-1]), "peak_mib": child.peak_mib}

    return _of_every_scan(bench, measure)


def knobs(bench: Bench) -> dict[str, dict]:
    """Measure time, memory and Dice of every scan for every row of the page's knob table."""

    def measure(name: str, scan: Path) -> dict:
        found = {}
        for knob in KNOBS:
            folder = bench.work / "knobs" / name / knob.name
            result = _measure(bench, "segment", scan=str(scan), output_dir=str(folder), repeats=bench.repeats, overrides=knob.overrides)
            kept = _scored(scan, result)
            found[knob.name] = {k: kept[k] for k in ("total_s", "peak_mib", "dice") if k in kept}
        return found

    return _of_every_scan(bench, measure)


def folder(bench: Bench) -> dict[str, Any]:
    """Measure a folder with copies of the first scan, `repeats` times, the ways in turn.

    `seconds` are those of the command, `per_scan_s` those between the first report (of every process) and the last; both are medians.
    """
    source = _copies(next(iter(bench.scans.values())), bench.work / "folder", bench.folder_size)
    ways = {"one_by_one": (0, 1), "overlapped": (1, 1), "side_by_side": (0, cores())}
    children: dict[str, list[Child]] = {name: [] for name in ways}
    per_scan_s: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(bench.repeats):
        for name, (workers, processes) in ways.items():
            target = bench.work / f"folder_{name}_{turn}"
            options = ["--dataset_dir", str(source), "--output_dir", str(target), "--num_workers", str(workers)]
            children[name].append(_command(bench, options, with_children=True, processes=processes))
            ended = _report_times(target)[processes - 1 :]
            per_scan_s[name].append((ended[-1] - ended[0]) / (len(ended) - 1))
    return {
        "scans": bench.folder_size,
        "processes": cores(),
        **{
            name: {
                "seconds": median(c.seconds for c in children[name]),
                "per_scan_s": median(per_scan_s[name]),
                "peak_mib": max(c.peak_mib for c in children[name]),
            }
            for name in ways
        },
    }


def _report_times(folder: Path) -> list[float]:
    """Return the times at which the reports in a folder of masks were written, in seconds, sorted."""
    return sorted(report.stat().st_mtime for report in folder.glob("*_seg.json"))


def many(bench: Bench) -> dict[str, Any]:
    """Measure a folder with `many_scans` copies of the first scan, one process per core: seconds per scan in its first and last tenth."""
    target = bench.work / "many_masks"
    source = _copies(next(iter(bench.scans.values())), bench.work / "many", bench.many_scans)
    options = ["--dataset_dir", str(source), "--output_dir", str(target), "--num_workers", "0"]
    child = _command(bench, options, with_children=True, processes=cores())
    ended = _report_times(target)
    tenth = len(ended) // 10
    return {
        "scans": len(ended),
        "processes": cores(),
        "seconds": child.seconds,
        "first_tenth_s": (ended[tenth - 1] - ended[0]) / (tenth - 1),
        "last_tenth_s": (ended[-1] - ended[-tenth]) / (tenth - 1),
        "peak_mib": child.peak_mib,
    }


def _copies(scan: Path, folder: Path, count: int) -> Path:
    """Fill a new folder with `count` hard links to a copy of the scan, and return it."""
    folder.mkdir(parents=True)
    first = folder / f"copy_0000_{scan.name}"
    shutil.copy(scan, first)
    for i in range(1, count):
        os.link(first, folder / f"copy_{i:04d}_{scan.name}")
    return folder


def large(bench: Bench) -> dict[str, Any]:
    """Measure the whole command for one scan of `LARGE_SHAPE` voxels: the isotropic phantom surrounded by noise."""
    phantom = read_volume(phantoms(bench.work / "large")["isotropic"]).data.astype(np.float32)
    view = np.random.default_rng(0).normal(0.02 * phantom.max(), 0.01 * phantom.max(), LARGE_MM).astype(np.float32)
    middle = tuple(slice((n - p) // 2, (n - p) // 2 + p) for n, p in zip(LARGE_MM, phantom.shape))
    view[middle] = phantom
    spacing = np.array(LARGE_MM) / LARGE_SHAPE
    voxels = resample_axes(torch.from_numpy(view)[None], spacing, LARGE_SHAPE)[0].numpy().astype(np.int16)
    scan = bench.work / "large_scan.nii.gz"
    nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, 1])), scan)
    child = _command(bench, ["--image", str(scan), "--output_dir", str(bench.work / "large_masks")], with_children=True)
    return {**grid_of(scan), "cold_s": child.seconds, "cold_peak_mib": child.peak_mib}


def compiled(bench: Bench) -> dict[str, dict]:
    """Measure the fine network with and without `torch.compile`: its seconds, those of the whole scan, and those of the first scan."""

    def measure(name: str, scan: Path) -> dict:
        found = {}
        for way, chosen in (("as it is", False), ("compiled", True)):
            folder = bench.work / "compiled" / name / way
            result = _measure(bench, "segment", scan=str(scan), output_dir=str(folder), repeats=bench.repeats, compiled=chosen)
            found[way] = {"fine_s": result["steps"].get(FINE, 0.0), **{k: result[k] for k in ("total_s", "first_s")}}
        return found

    return _of_every_scan(bench, measure)


def training(bench: Bench) -> dict[str, dict]:
    """Measure training steps per second on phantoms.

    The ways are train.yaml as it is, the same with a larger batch on a GPU or in bfloat16 on a CPU that has it, and the plain way.
    """
    data, on_gpu = bench.work / "training", torch.cuda.is_available()
    write_cohort(data, training=TRAINING_PHANTOMS, validation=1, testing=0, seed=12)
    run = partial(_measure, bench, "train", dataset_dir=str(data), steps=bench.training_steps * (GPU_STEPS if on_gpu else 1))
    ways = {"ours": {}}
    if on_gpu:
        ways["batch of 16"] = {"batch_size": 16}
    elif has_bfloat16(torch.device("cpu")):
        ways["bfloat16"] = {"train_amp": True}
    return {
        **{way: run(output_dir=str(data / way), overrides=overrides) for way, overrides in ways.items()},
        "plain": run(output_dir=str(data / "plain"), as_usual=True),
    }


PARTS = {f.__name__: f for f in (ours, plain, accuracy, nnunet, knobs, compiled, folder, many, large, training)}
