"""Two processes under torchrun: the figures and masks of one, uneven shares, fewer scans than processes, and one that dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, EVALUATE, INFERENCE, NO_AUGMENTATION, SMALL, TRAIN, run_bundle

pytestmark = pytest.mark.clients
MULTI_GPU_TRAIN, MULTI_GPU_INFERENCE = (str(BUNDLE / "configs" / f"multi_gpu_{name}.yaml") for name in ("train", "inference"))


def torchrun(files: list[str], cwd: Path, port: int, **overrides) -> list[str]:
    """Command line of two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "-m", "monai.bundle", "run"]
    options = {**SMALL, **overrides}
    return [*command, "--config_file", str(files), *(f"--{k}={v}" for k, v in options.items())]


def call(command: list[str], cwd: Path) -> str:
    """From a foreign folder, without PYTHONPATH; the output of both processes."""
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def three_scans(cohort, tmp_path_factory) -> Path:
    """datalist.json whose splits hold three scans and one."""
    listed = json.loads((cohort / "datalist.json").read_text())
    three = [*listed["validation"], listed["testing"][0]]
    path = tmp_path_factory.mktemp("lists") / "datalist.json"
    path.write_text(json.dumps({"training": listed["training"][:1], "validation": listed["validation"][:1], "three": three}))
    return path


def test_evaluation_gives_the_figures_of_one_process(cohort, trained, three_scans, tmp_path):
    options = {"dataset_dir": str(cohort), "datalist": str(three_scans), "ckpt_path": str(trained / "model.pt"), "figures": False}
    run_bundle([TRAIN, EVALUATE], **options, split="three", output_dir=str(tmp_path / "one"))
    command = torchrun([TRAIN, EVALUATE, MULTI_GPU_TRAIN], tmp_path, 29611, **options, split="three", output_dir=tmp_path / "two")
    assert call(command, tmp_path).count("all      all") == 1  # the table is printed once
    for name in ("metrics.csv", "metrics.json", "structures.csv", "spines.csv", "overview.html"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text(), name


@pytest.mark.parametrize("split", ["three", "validation"], ids=["uneven", "fewer scans than processes"])
def test_inference_writes_every_scan_once(split, cohort, trained, three_scans, tmp_path):
    options = {"dataset_dir": str(cohort), "datalist": str(three_scans), "split": split, "ckpt_path": str(trained / "model.pt")}
    run_bundle(INFERENCE, **options, output_dir=str(tmp_path / "one"), figures=False)
    call(torchrun([INFERENCE, MULTI_GPU_INFERENCE], tmp_path, 29612, **options, output_dir=tmp_path / "two", figures=False), tmp_path)
    one, two = ({p.relative_to(d): p for p in sorted(d.rglob("*")) if p.is_file()} for d in (tmp_path / "one", tmp_path / "two"))
    assert one.keys() == two.keys()
    for name, path in one.items():
        if name.suffix == ".gz":
            np.testing.assert_array_equal(nib.load(path).dataobj, nib.load(two[name]).dataobj)
        else:
            assert path.read_text() == two[name].read_text(), name
    assert sum(name.suffix == ".gz" for name in one) == (3 if split == "three" else 1)


def test_training_with_fewer_scans_than_processes(cohort, three_scans, tmp_path):
    """One scan to train on and one to validate; no output_dir is given, so the processes have to agree on one."""
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns(".*", "output", "tests", "__pycache__"))
    files = [str(bundle / "configs" / name) for name in ("train.yaml", "multi_gpu_train.yaml")]
    options = {"bundle_root": bundle, "dataset_dir": cohort, "datalist": three_scans, "epochs": 2, "val_interval": 1}
    call(torchrun(files, tmp_path, 29613, **options), tmp_path)
    (folder,) = (bundle / "output").iterdir()
    last = torch.load(folder / "last.pt", weights_only=True)
    assert last["trainer"]["iteration"] == 2
    assert len(list((folder / "tensorboard").glob("events*"))) == 1


def epochs_of(checkpoint: Path) -> int:
    trainer = torch.load(checkpoint, weights_only=True)["trainer"]
    return trainer["iteration"] // trainer["epoch_length"]


def test_a_process_that_dies_ends_the_run(cohort, tmp_path):
    """The others end with it, within a minute, torchrun names it, and the run goes on from the last epoch."""
    options = {"dataset_dir": cohort, "output_dir": tmp_path / "out", "val_interval": 1000, **NO_AUGMENTATION}
    command = torchrun([TRAIN, MULTI_GPU_TRAIN], tmp_path, 29614, **options, epochs=100000)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")
    try:
        last = tmp_path / "out" / "last.pt"
        deadline = time.monotonic() + 200
        while not last.exists():
            assert process.poll() is None, process.stderr.read()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.5)
        workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        os.kill(workers[1], signal.SIGKILL)
        _, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert f"(pid: {workers[1]})" in log
    assert "-9" in log
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    epoch = epochs_of(last)  # whole, though its writer was killed or stopped
    again = {**options, "resume": tmp_path / "out", "epochs": epoch + 1}
    call(torchrun([TRAIN, MULTI_GPU_TRAIN], tmp_path, 29615, **again), tmp_path)
    assert epochs_of(last) == epoch + 1
