"""Run a command as a process of its own, and measure its time and memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.common.errors import UserError

INTERVAL_S = 0.1
ROLLUP = "/proc/{}/smaps_rollup"


class Child(NamedTuple):
    """A process that has ended."""

    output: str  # stdout
    seconds: float
    peak_mib: float  # largest resident memory of the process, or of it and those that it has started


class Watch:
    """A thread that looks at the memory of a process and its descendants until it is told to end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak_mib = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.ended.wait(INTERVAL_S):
            self.peak_mib = max(self.peak_mib, memory_mib(self.pid))

    def end(self) -> float:
        """The largest sum that was seen, in MiB."""
        self.ended.set()
        self.thread.join()
        return self.peak_mib


def memory_mib(pid: int) -> float:
    """Memory of a process and its descendants on Linux, MiB; what several of them share counts once. 0 for one that has ended."""
    try:
        found = re.search(r"^Pss: +(\d+) kB", Path(ROLLUP.format(pid)).read_text(), re.MULTILINE)
        children = [int(n) for task in Path(f"/proc/{pid}/task").iterdir() for n in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(found[1]) / 2**10 if found else 0.0) + sum(memory_mib(child) for child in children)


def run_child(command: Sequence[str], folder: str, timeout_s: float = 3600.0, with_children: bool = False) -> Child:
    """Run a command in `folder` to its end.

    Args:
        command: program and arguments.
        folder: to run it in.
        timeout_s: after which it is killed.
        with_children: on Linux, look at the memory of all its processes together, `INTERVAL_S` apart, instead of its own alone, which
            the system itself keeps. That slows it down a little.

    Raises:
        UserError: if it fails or takes longer than `timeout_s`; the message ends with the last lines that it printed.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err)
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        watch = Watch(process.pid) if with_children and Path(ROLLUP.format("self")).exists() else None
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            timer.cancel()
            peak_mib = watch.end() if watch else 0.0
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            last = " / ".join(err.read().strip().splitlines()[-3:])
            raise UserError(f"{' '.join(command[:5])} ... ended with {process.returncode} after {seconds:.0f} s: {last}")
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        return Child(out.read(), seconds, max(peak_mib, usage.ru_maxrss / unit))
