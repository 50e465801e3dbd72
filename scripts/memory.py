"""Memory settings of the process."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the C allocator keep what PyTorch frees, instead of asking the kernel for zeroed pages at every layer.

    By default glibc maps every large tensor anew; on a CPU a third of a training step goes into page faults. Does nothing outside
    glibc. The process holds its peak memory until it ends.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(M_TOP_PAD, 2**28)


def return_freed_memory() -> None:
    """Give the kernel back what `keep_freed_memory` keeps: a process that reads scans would hold its peak while the network computes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
