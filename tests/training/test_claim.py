"""One training per folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conftest import BUNDLE

from scripts.common.errors import CallError
from scripts.training.claim import claim

HOLD = "import sys; from scripts.training.claim import claim; claim(sys.argv[1]); print('claimed', flush=True); sys.stdin.read()"


def test_a_reader_that_outlives_its_training_holds_no_folder(tmp_path):
    fork = "import os, time; child = os.fork(); (print(child, flush=True) or os._exit(1)) if child else time.sleep(60)"
    code = HOLD.split("print")[0] + fork
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=BUNDLE, stdout=subprocess.PIPE, text=True)
    child = int(run.stdout.readline())
    run.wait()
    try:
        claim(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        run.stdout.close()


def test_a_folder_in_which_another_process_trains(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=BUNDLE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(CallError, match=r"run: another training is writing there\. Wait for its end, or set another --output_dir\.$"):
            claim(tmp_path / "run")
        claim(tmp_path / "another")
        other.stdin.close()
        other.wait()
    claim(tmp_path / "run")  # the other one has ended, however it did
    claim(tmp_path / "run")  # and a process may train there again
