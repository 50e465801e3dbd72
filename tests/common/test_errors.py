"""Errors and file names on their way to the console."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import BUNDLE


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
