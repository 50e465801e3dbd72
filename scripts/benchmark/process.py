"""Run a command as a process of its own, and measure its time and memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from scripts.common.errors import UserError

INTERVAL_S = 0.1
STATUS, ROLLUP = "/proc/{}/status", "/proc/{}/smaps_rollup"


class Child(NamedTuple):
    """A process that has ended."""

    output: str  # stdout
    seconds: float
    peak_mib: float  # largest resident memory of the process, or of it and those that it has started


class Watch:
    """A thread that looks at the memory of a process until it is told to end.

    Args:
        pid: of the process.
        memory: gives its memory in MiB, `own_mib` or `memory_mib`.
    """

    def __init__(self, pid: int, memory: Callable[[int], float]) -> None:
        self.pid, self.memory = pid, memory
        self.peak_mib = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.ended.wait(INTERVAL_S):
            self.peak_mib = max(self.peak_mib, self.memory(self.pid))

    def end(self) -> float:
        """The largest memory that was seen, in MiB."""
        self.ended.set()
        self.thread.join()
        return self.peak_mib


def own_mib(pid: int) -> float:
    """The largest memory that a process on Linux has had so far, without its descendants, MiB. 0 for one that has ended."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(STATUS.format(pid)).read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(found[1]) / 2**10 if found else 0.0


def memory_mib(pid: int) -> float:
    """Memory of a process and its descendants on Linux, MiB; what several of them share counts once. 0 for one that has ended."""
    try:
        found = re.search(r"^Pss: +(\d+) kB", Path(ROLLUP.format(pid)).read_text(), re.MULTILINE)
        children = [int(n) for task in Path(f"/proc/{pid}/task").iterdir() for n in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(found[1]) / 2**10 if found else 0.0) + sum(memory_mib(child) for child in children)


class GpuWatch:
    """NVIDIA's driver, asked again and again which share of the time a GPU computes, until it is told to end.

    Args:
        uuid: of the GPU.
    """

    def __init__(self, uuid: str) -> None:
        tool, options = shutil.which("nvidia-smi"), ["--format=csv,noheader,nounits", f"--loop-ms={1000 * INTERVAL_S:.0f}"]
        command = [tool, f"--id={uuid}", "--query-gpu=utilization.gpu", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if tool else None

    def end(self) -> float | None:
        """The mean of the shares, 0 to 1; None if there was none."""
        if self.process is None:
            return None
        self.process.terminate()
        text, _ = self.process.communicate()
        percent = [int(line) for line in text.splitlines() if line.strip().isdecimal()]
        return mean(percent) / 100 if percent else None


def run_child(command: Sequence[str], folder: str, timeout_s: float = 3600.0, with_children: bool = False) -> Child:
    """Run a command in `folder` to its end.

    Args:
        command: program and arguments.
        folder: to run it in.
        timeout_s: after which it is killed.
        with_children: on Linux, add up the memory of all its processes, `INTERVAL_S` apart, instead of reading the mark that Linux keeps
            of its own. That slows it down a little.

    Raises:
        UserError: if it fails or takes longer than `timeout_s`; the message ends with the last lines that it printed.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err)
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        # not ru_maxrss, where there is another way: it counts what this process held when it started the other
        on_linux = Path(ROLLUP.format("self")).exists()
        watch = Watch(process.pid, memory_mib if with_children else own_mib) if on_linux else None
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            timer.cancel()
            seen_mib = watch.end() if watch else 0.0
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            last = " / ".join(err.read().strip().splitlines()[-3:])
            raise UserError(f"{' '.join(command[:5])} ... ended with {process.returncode} after {seconds:.0f} s: {last}")
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        return Child(out.read(), seconds, seen_mib or usage.ru_maxrss / unit)
