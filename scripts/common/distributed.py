"""Several processes, with or without GPUs: start and end of the process group, and which process takes which scan."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sized
from datetime import timedelta
from itertools import zip_longest
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.engines import Evaluator
from torch.utils.data import Sampler

from scripts.common.errors import CallError

TIMEOUT = timedelta(days=7)  # one process may still have scans to segment; torchrun ends all as soon as one dies


def start(share_gpus: bool = False) -> None:
    """Join the other processes that `torchrun` started, and take this process's GPU where there are any.

    Args:
        share_gpus: several processes may have the same GPU; they can then exchange only tensors in the memory of the CPU.

    Raises:
        CallError: without `torchrun`, or with more processes than GPUs on this machine that they do not share.
    """
    if "LOCAL_RANK" not in os.environ:
        raise CallError("a multi_gpu config runs under torchrun: torchrun --nproc_per_node=2 -m monai.bundle run ...")
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if gpus and not share_gpus and local >= gpus:
        raise CallError(f"{gpus} GPUs here, but more processes: lower --nproc_per_node")
    if not dist.is_initialized():
        dist.init_process_group(backend="nccl" if gpus and not share_gpus else "gloo", timeout=TIMEOUT)
    idist.sync()
    os.environ["LOCAL_RANK"] = str(local)  # under Slurm, Ignite overwrites it with srun's rank, the same for all processes of a torchrun
    if gpus:
        torch.cuda.set_device(local % gpus)


def finish() -> None:
    """Wait for the other processes, then leave the process group."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def from_first(value: Any) -> Any:
    """Return rank 0's `value` on every rank; all of them must call it at the same point."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


class ScanSampler(Sampler[int]):
    """Sampler that gives each of n processes every n-th scan of a dataset; one may get a scan more than another.

    MONAI's `DistributedSampler` refuses fewer scans than processes.

    Args:
        dataset: the scans.
        never_empty: give a process left without a scan one that another has too, because an engine with nothing to do skips its run,
            and the others wait for it where results are gathered. `StructureDice` and `StructureReport` count such a scan once.
    """

    def __init__(self, dataset: Sized, never_empty: bool = False) -> None:
        self.scans = list(range(len(dataset)))[idist.get_rank() :: idist.get_world_size()]
        if never_empty and not self.scans and len(dataset):
            self.scans = [idist.get_rank() % len(dataset)]

    def __iter__(self) -> Iterator[int]:
        return iter(self.scans)

    def __len__(self) -> int:
        return len(self.scans)


def run(evaluator: Evaluator) -> None:
    """Run an evaluator; in a process without a scan, fire the events in which its handlers gather results from all processes."""
    if evaluator.state.epoch_length:
        evaluator.run()
    else:
        evaluator.fire_event(Events.STARTED)
        evaluator.fire_event(Events.COMPLETED)


def gathered(of_scan: dict[Hashable, list]) -> list:
    """Gather the rows of all processes, scan by scan in the order of the dataset; a scan that two processes had occurs once.

    Args:
        of_scan: rows of this process, which took every n-th scan, by what identifies the scan.
    """
    parts = idist.all_gather(of_scan) if idist.get_world_size() > 1 else [of_scan]
    merged: dict[Hashable, list] = {}
    for scans in zip_longest(*(part.items() for part in parts)):
        for name, rows in filter(None, scans):
            merged.setdefault(name, rows)
    return [row for rows in merged.values() for row in rows]
