"""Memory settings of the process."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the C allocator keep what PyTorch frees, instead of asking the kernel for zeroed pages at every layer.

    By default glibc maps every large tensor anew; on a CPU a third of a training step goes into page faults. Does nothing outside
    glibc. The process holds its peak memory until it ends.
    """
    _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28})


def map_large_memory(worker: int = 0) -> None:
    """Undo `keep_freed_memory` in a process that reads scans.

    Blocks that one step of a large scan frees are often too small for the next step to use.

    Args:
        worker: unused; `DataLoader` passes its number to a `worker_init_fn`.
    """
    _set({M_MMAP_MAX: 2**16, M_MMAP_THRESHOLD: 2**20, M_TRIM_THRESHOLD: 2**20, M_TOP_PAD: 2**17})


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)


def return_freed_memory() -> None:
    """Return to the kernel what `keep_freed_memory` keeps: else a process that reads scans holds its peak while the network computes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
