"""Memory settings of the process."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the C allocator keep what PyTorch frees, instead of asking the kernel for zeroed pages at every layer.

    By default glibc maps every large tensor anew; on a CPU a third of a training step goes into page faults. Does nothing outside
    glibc. The process holds its peak memory until it ends.
    """
    _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28})


def map_large_memory(worker: int = 0) -> None:
    """Undo `keep_freed_memory` in a process that reads: what a step of a large scan frees is often too small for the next one to use.

    Args:
        worker: its number, which `DataLoader` gives to a `worker_init_fn`.
    """
    _set({M_MMAP_MAX: 2**16, M_MMAP_THRESHOLD: 2**20, M_TRIM_THRESHOLD: 2**20, M_TOP_PAD: 2**17})


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)


def return_freed_memory() -> None:
    """Give the kernel back what `keep_freed_memory` keeps: a process that reads scans would hold its peak while the network computes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
