"""The training of train.yaml, killed and stopped as a user does it, ends with the weights of one that ran through."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SMALL, TRAIN, run_bundle

EPOCHS = 12  # of two steps
# nothing that an untrained network draws is large enough to be named: validations take no time
OPTIONS = {**SMALL, "epochs": EPOCHS, "batch_size": 1, "val_interval": 3, "min_instance_mm3": 1e9, "tensorboard_cases": 0, "num_workers": 1}


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory) -> dict:
    """Last checkpoint of the run in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    run_bundle(TRAIN, **OPTIONS, dataset_dir=str(cohort), output_dir=str(folder))
    return torch.load(folder / "last.pt", weights_only=True)


def start(cohort: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", TRAIN]
    options = [f"--{k}={v}" for k, v in {**OPTIONS, "dataset_dir": cohort, "output_dir": folder}.items()]
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen([*command, *options], cwd=folder, stdout=log, stderr=subprocess.STDOUT)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, (path.parent / "log.txt").read_text()[-3000:]
        time.sleep(0.01)


def resumed(cohort: Path, folder: Path) -> dict:
    run_bundle(TRAIN, **OPTIONS, dataset_dir=str(cohort), resume=str(folder))
    return torch.load(folder / "last.pt", weights_only=True)


def assert_equal(a, b, where: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            assert_equal(*pair, f"{where}/{i}")
    else:
        assert a == b, where


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_a_resumed_training_ends_with_the_same_weights(cohort, tmp_path, whole, number):
    process = start(cohort, tmp_path)
    wait_for(tmp_path / "last.pt", process)
    process.send_signal(number)
    code = process.wait(timeout=60)
    log = (tmp_path / "log.txt").read_text()
    if number == signal.SIGTERM:
        assert code == 143
        assert re.search(rf"\nstopped in epoch \d+ of {EPOCHS}, step \d+. The same command with --resume {tmp_path} goes on.\n$", log)
        assert "Traceback" not in log
    stopped = torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"]
    assert 2 <= stopped < 2 * EPOCHS
    last = resumed(cohort, tmp_path)
    assert last["trainer"]["iteration"] == 2 * EPOCHS
    assert_equal(last, whole)  # network, optimizer, schedule, best score, early stop
