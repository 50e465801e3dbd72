"""Errors and file names as the console shows them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import BUNDLE

from scripts.common.errors import CallError, UserError, did_you_mean, similar_path


@pytest.mark.parametrize(("kind", "code"), [(UserError, 1), (CallError, 2)])
def test_the_line_is_printed_once_however_often_the_code_is_asked_for(kind, code, capfd):
    error = kind("a.nii.gz: bad")
    assert [error.code for _ in range(3)] == [code] * 3
    assert capfd.readouterr() == ("", "a.nii.gz: bad\n")


def test_names_outside_the_encoding_of_the_console():
    program = (
        "from scripts.common import command\n"
        "command.is_command = lambda: True\n"
        "command.begin()\n"
        "print('\u810a.nii.gz: cannot be read, \u00fc')\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", program], cwd=BUNDLE, capture_output=True, env=environment, timeout=100)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines() == [rb"\u810a.nii.gz: cannot be read, " + "\u00fc".encode("cp1252")]


def test_a_name_that_was_left_off_is_meant():
    known = ["datalist", "dataset_dir", "split"]
    assert did_you_mean("dataset", known, prefix="--") == " Did you mean --dataset_dir?"
    assert did_you_mean("datalits", known) == " Did you mean datalist?"
    assert did_you_mean("da", known) == ""


def test_a_link_that_leads_nowhere_is_no_suggestion(tmp_path):
    (tmp_path / "gone.nii.gz").symlink_to("nowhere")
    assert similar_path(tmp_path / "gone.nii.gz") == ""
    (tmp_path / "gone2.nii.gz").touch()
    assert similar_path(tmp_path / "gone.nii.gz") == f" Did you mean {tmp_path / 'gone2.nii.gz'}?"
