"""A training of train.yaml that was killed or stopped, and resumed, ends with the same bits as one without a break."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from conftest import SMALL, TRAIN, run_bundle

EPOCHS = 12  # epochs of two steps
# an untrained network draws nothing large enough to be named, so the validation takes no time
OPTIONS = {**SMALL, "epochs": EPOCHS, "batch_size": 1, "val_interval": EPOCHS, "min_instance_mm3": 1e9, "tensorboard_cases": 0}


class Training:
    """A training by `python -m monai.bundle run` in a process of its own."""

    def __init__(self, folder: Path, **options) -> None:
        self.last, self.log = folder / "last.pt", folder / "log.txt"
        arguments = [f"--{k}={v}" for k, v in {**OPTIONS, "output_dir": folder, **options}.items()]
        self.before = self._time()
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", TRAIN, *arguments]
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)

    def _time(self) -> int:
        return self.last.stat().st_mtime_ns if self.last.exists() else 0

    def end(self, number: signal.Signals) -> int:
        """Send a signal when a checkpoint has been written; return the exit code."""
        while self._time() == self.before:
            assert self.process.poll() is None, self.log.read_text(encoding="utf-8")[-3000:]
            time.sleep(0.01)
        self.process.send_signal(number)
        return self.process.wait(timeout=100)


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            assert_equal(*pair, f"{where}/{i}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where


def test_a_killed_and_a_stopped_training_end_with_the_same_weights(cohort, tmp_path):
    listed = json.loads((cohort / "datalist.json").read_text())
    (tmp_path / "list.json").write_text(json.dumps({**listed, "validation": listed["validation"][:1]}))
    data = {"dataset_dir": str(cohort), "datalist": str(tmp_path / "list.json")}
    folders = [tmp_path / "whole", tmp_path / "resumed"]
    folders[1].mkdir()
    assert Training(folders[1], **data, num_workers=1).end(signal.SIGKILL) == -signal.SIGKILL
    stopped = Training(folders[1], **data, num_workers=1, resume=folders[1])
    assert stopped.end(signal.SIGTERM) == 128 + signal.SIGTERM
    log = stopped.log.read_text(encoding="utf-8")
    assert re.search(rf"stopped in epoch \d+ of {EPOCHS}, step \d+\. The same command with --resume {folders[1]} goes on\.\n", log)
    assert "Traceback" not in log
    assert 2 < torch.load(stopped.last, weights_only=True)["trainer"]["iteration"] < 2 * EPOCHS
    run_bundle(TRAIN, **OPTIONS, **data, resume=str(folders[1]))
    run_bundle(TRAIN, **OPTIONS, **data, output_dir=str(folders[0]))
    whole, resumed = (torch.load(folder / "last.pt", weights_only=True) for folder in folders)
    assert whole["trainer"]["iteration"] == 2 * EPOCHS
    assert_equal(resumed, whole)  # network, optimizer, schedule, best score, early stop
