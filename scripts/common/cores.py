"""How many processes and threads work beside the network."""

from __future__ import annotations

import os

import torch

MAX_WORKERS = 64  # of one network; every one of them holds some samples


def cores() -> int:
    """Cores that this process may use: in a container or a batch job fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: torch.device | str) -> int:
    """Processes that augment: on a CPU one, where the network needs the others; on a GPU its share of the cores."""
    if torch.device(device).type != "cuda":
        return 1
    return max(1, min(MAX_WORKERS, cores() // max(1, torch.cuda.device_count())))
