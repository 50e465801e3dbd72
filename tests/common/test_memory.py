"""Freed memory stays with the process, where there is glibc."""

from __future__ import annotations

import ctypes
import subprocess
import sys

from conftest import BUNDLE

from scripts.common import memory


def test_keep_freed_memory_sets_the_allocator_on_linux_only(monkeypatch):
    calls = []
    library = type("Library", (), {"mallopt": lambda self, name, value: calls.append((name, value)) or 1})()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    memory.keep_freed_memory()
    assert calls == [(-4, 0), (-1, 2**31 - 1), (-2, 2**28)]  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    calls.clear()
    memory.map_large_memory()
    assert calls == [(-4, 2**16), (-3, 2**20), (-1, 2**20), (-2, 2**17)]
    calls.clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # musl: no mallopt
    memory.keep_freed_memory()
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    memory.keep_freed_memory()
    assert calls == []


def test_keep_freed_memory_may_be_called_twice():
    code = "from scripts.common.memory import *; keep_freed_memory(); keep_freed_memory(); map_large_memory(); print(len(bytearray(10**7)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "10000000\n", "")
