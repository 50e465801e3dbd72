"""A small phantom cohort and a small network trained on it, shared by the tests that run the configs."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.common.errors import UserError
from scripts.common.memory import keep_freed_memory
from scripts.phantoms.phantom import write_cohort

BUNDLE = Path(__file__).resolve().parents[1]
TRAIN = str(BUNDLE / "configs" / "train.yaml")
EVALUATE = str(BUNDLE / "configs" / "evaluate.yaml")
INFERENCE = str(BUNDLE / "configs" / "inference.yaml")
TOOLS = str(BUNDLE / "configs" / "tools.yaml")

# a coarse grid and a narrow network: a training takes seconds, and still learns
WORKING_GRID = {"spacing": [5.0, 3.5, 3.5], "patch_size": [16, 48, 64], "margin": 4}
NETWORK = {"network_def::coarse_voxel": [1, 1, 1], "network_def::view_size": [16, 48, 64]}
for part in ("coarse", "fine"):
    NETWORK |= {f"network_def::{part}::{k}": v for k, v in {"channels": [16, 32, 48, 64], "strides": [2, 2, 2], "num_res_units": 1}.items()}
SMALL = {"bundle_root": str(BUNDLE), "num_workers": 0, **WORKING_GRID, **NETWORK}
EPOCHS = 240  # of one step each
SAMPLE_KNOBS = [prefix + knob for prefix in ("", "view_") for knob in ("rotate", "scale", "intensity_prob", "contrast_prob", "invert_prob")]
NO_AUGMENTATION = {
    "exact_prob": 0.5,
    **dict.fromkeys(["flip_prob", "thick_prob", "blank_prob", "noise_prob", "bend", "cut", *SAMPLE_KNOBS], 0.0),
}
DICOM = bytes(128) + b"DICM" + bytes(20)


def touch(root: Path, *names: str) -> Path:
    """Files without a scan in them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DICOM if path.suffix in (".dcm", "") else b"x")
    return root


def labelled(root: Path, *stems: str) -> Path:
    """Write scans of one voxel of L1, with their labels beside them."""
    for stem in stems:
        path = root / f"{stem}.nii"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.full((2, 2, 2), 20, np.uint8), np.eye(4)), path)
        nib.save(nib.Nifti1Image(np.full((2, 2, 2), 20, np.uint8), np.eye(4)), path.with_name(f"{path.stem}_seg.nii"))
    return root


def fails(message: str):
    """A `UserError` with exactly that line."""
    return pytest.raises(UserError, match=f"^{re.escape(message)}$")


def run_bundle(config_file: str | list[str], run_id: str = "run", **overrides) -> None:
    """`python -m monai.bundle run`, in this process."""
    monai.bundle.run(run_id=run_id, config_file=config_file, **{**SMALL, **overrides})


def infer(weights: Path, output_dir: Path, dataset_dir: Path, **options) -> int:
    """The exit code."""
    try:
        run_bundle(INFERENCE, ckpt_path=str(weights), output_dir=str(output_dir), dataset_dir=str(dataset_dir), **options)
    except SystemExit as end:
        return end.code
    return 0


def failures(output_dir: Path) -> dict[str, dict]:
    with (output_dir / "failures.csv").open(newline="", encoding="utf-8") as handle:
        return {Path(row["file"]).name: row for row in csv.DictReader(handle)}


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def last_line(capfd) -> str:
    return capfd.readouterr().out.splitlines()[-1]


@pytest.fixture(scope="session", autouse=True)
def _settings():
    os.environ["MONAI_FAIL_ON_DUPLICATE_CONFIG"] = "1"
    torch.manual_seed(0)
    torch.set_num_threads(2)  # sums depend on it, and with them what the small network makes of noise
    keep_freed_memory()


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Folder with two training, two validation and two testing phantoms of one contrast and about 60 x 160 x 240 mm."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, training=2, validation=2, testing=2, seed=3, contrast="T2w", view="L3", shape=(12, 64, 96), spacing_mm=(2.5, 4.9))
    return folder


@pytest.fixture(scope="session")
def trained(cohort, tmp_path_factory) -> Path:
    """output_dir of a short training without augmentation."""
    folder = tmp_path_factory.mktemp("trained")
    options = {"epochs": EPOCHS, "val_interval": EPOCHS // 2, "learning_rate": 1e-2, "tensorboard_cases": 1, **NO_AUGMENTATION}
    run_bundle(TRAIN, dataset_dir=str(cohort), output_dir=str(folder), **options)
    return folder


@pytest.fixture(scope="session")
def evaluated(cohort, trained, tmp_path_factory) -> Path:
    """output_dir of an evaluation of the trained network on its own training scans."""
    folder = tmp_path_factory.mktemp("evaluated")
    weights = str(trained / "model.pt")
    run_bundle([TRAIN, EVALUATE], dataset_dir=str(cohort), output_dir=str(folder), ckpt_path=weights, split="training")
    return folder


@pytest.fixture(scope="session")
def small_scan(tmp_path_factory) -> Path:
    """A phantom of 44 x 80 x 128 mm, one window of the fine network: little work for the shipped weights. Its label is beside it."""
    folder = tmp_path_factory.mktemp("small_scan")
    options = {"contrast": "T2w", "view": "L3", "shape": (9, 32, 51), "spacing_mm": (2.5, 4.9)}
    write_cohort(folder, training=0, validation=1, testing=0, seed=3, **options)
    return next(folder.rglob("*_T2w.nii.gz"))


@pytest.fixture(scope="session")
def weights(trained) -> Path:
    """A small network."""
    return trained / "model.pt"


@pytest.fixture(scope="session")
def scan(cohort) -> nib.Nifti1Image:
    """A phantom, its slices along the last axis."""
    found = nib.load(min((cohort / "testing").glob("*w.nii.gz")))
    voxels, affine = np.asarray(found.dataobj).astype(np.int16), found.affine
    order = [*(axis for axis in range(3) if axis != np.argmin(voxels.shape)), int(np.argmin(voxels.shape))]
    return nib.Nifti1Image(voxels.transpose(order), affine[:, [*order, 3]])


@pytest.fixture
def two(scan, tmp_path) -> Path:
    """Folder with two scans."""
    folder = tmp_path / "two"
    folder.mkdir()
    for name in "ab":
        nib.save(nib.Nifti1Image(np.asarray(scan.dataobj)[::2, ::2], scan.affine @ np.diag([2, 2, 1, 1])), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture
def no_copies(request, monkeypatch):
    """Switch the search for copies off, because most scans of these tests are a few voxels with the same values."""
    if "copies" not in request.node.name:
        monkeypatch.setattr("scripts.tools.prepare.sha256_of", str)
