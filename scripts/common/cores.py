"""Number of worker processes that run beside the network."""

from __future__ import annotations

import os

import torch

MAX_WORKERS = 64  # per network, because each of them holds some samples in memory


def cores() -> int:
    """Return the number of cores that this process may use, which in a container or a batch job are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: torch.device | str) -> int:
    """Return how many processes augment: on a CPU one, because the network needs the other cores; for a GPU its share of the cores."""
    if torch.device(device).type != "cuda":
        return 1
    return max(1, min(MAX_WORKERS, cores() // max(1, torch.cuda.device_count())))
