"""A full disk, a reader that dies, a process that is killed: files are whole, and one scan at most is lost."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nibabel as nib
from conftest import INFERENCE, SMALL, failures, files, infer, last_line

from scripts import transforms
from scripts.common.files import write_whole
from scripts.data.find import case_name


def test_no_room_for_a_whole_file(weights, two, tmp_path):
    """A limit on the size of files acts like a full disk: it is enough for a mask and a table, not for a figure."""
    out = tmp_path / "out"
    options = {**SMALL, "ckpt_path": weights, "output_dir": out, "dataset_dir": two}
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", INFERENCE, *(f"--{k}={v}" for k, v in options.items())]
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (6000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, encoding="utf-8", timeout=200)
    assert done.returncode == 1, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith("0 segmented, 0 skipped (already done), 2 failed")
    assert {row["reason"].split(" (")[0] for row in failures(out).values()} == {"File too large"}
    assert files(out) == {"failures.csv", "a_seg.nii.gz", "b_seg.nii.gz"}
    assert infer(weights, out, two) == 0
    assert {"a_seg.png", "b_seg.png"} < files(out)


def test_a_reader_that_dies_costs_one_scan(weights, two, tmp_path, capfd, monkeypatch):
    nib.save(nib.load(two / "a.nii.gz"), two / "c.nii.gz")

    def read(path: str):
        if case_name(path) == "b":
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory is short
        return original(path)

    original = transforms.read_scan
    monkeypatch.setattr(transforms, "read_scan", read)
    assert infer(weights, tmp_path / "out", two, num_workers=1, figures=False) == 1
    assert last_line(capfd).startswith("2 segmented, 0 skipped (already done), 1 failed")
    assert failures(tmp_path / "out")["b.nii.gz"]["reason"].startswith("the process that read it died")


def test_killed_while_writing(tmp_path):
    path = tmp_path / "a_seg.nii.gz"
    path.write_text("old")

    def die(partial: Path) -> None:
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        write_whole(path, die)
    os.waitpid(child, 0)
    assert path.read_text() == "old"
    (left,) = files(tmp_path) - {path.name}
    assert left.startswith(".partial_")
    write_whole(path, lambda partial: partial.write_text("new"))  # another process may still be writing the other file
    assert path.read_text() == "new"
    assert files(tmp_path) == {path.name, left}


def test_left_over_partial_files_are_no_scans(weights, two, tmp_path):
    (two / ".partial_1234_x.nii.gz").write_bytes(b"half")
    old = tmp_path / "out" / ".partial_1234_a_seg.nii.gz"
    old.parent.mkdir()
    for path in (old, old.with_name(".partial_5678_a_seg.nii.gz")):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 86400,) * 2)
    assert infer(weights, old.parent, two, image=str(two / "a.nii.gz"), figures=False) == 0
    assert files(old.parent) == {
        ".partial_5678_a_seg.nii.gz",
        "a_seg.nii.gz",
        "a_seg.json",
        "structures.csv",
        "spines.csv",
        "overview.html",
    }  # another process may be writing it
