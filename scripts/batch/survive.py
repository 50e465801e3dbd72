"""Segment scan after scan, whatever is wrong with one of them."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Transform
from torch.utils.data import Subset

from scripts.batch.done import Done
from scripts.batch.outcomes import Outcomes
from scripts.common.distributed import from_first
from scripts.common.errors import ANY_FAULT, ScanError, explain
from scripts.common.memory import map_large_memory, return_freed_memory
from scripts.data.own_masks import check_replaceable
from scripts.data.volumes import check_there

logger = logging.getLogger(__name__)


class Scans(Dataset):
    """Dataset of scans to be segmented, in which an unreadable scan is an item too, and a scan that is done is not read.

    An item holds the path `file` and one of three: the transformed scan with `made_from`; `reason` and `fix` if that failed; `skipped`.

    Args:
        data: entries with an `image` each.
        transform: reads and prepares the scan.
        done: tells which scans are done.
    """

    def __init__(self, data: Sequence[dict], transform: Transform, done: Done) -> None:
        super().__init__(from_first(data), transform)  # processes share the first one's list: a new file would shift their shares
        self.done = done
        self.first = done.layout.first_scans(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.data[index]["image"]
        try:
            mask = self.done.layout.filename(file)
            first = self.first[mask]
            if first != file:
                raise ScanError(file, f"its mask would have the name of that of {first}", "Rename one of them.")
            check_there(file)
            made_from = self.done.made_from(file)
            if self.done(file, made_from):
                return {"file": file, "skipped": True}
            if not self.done.overwrite:
                check_replaceable(mask, file)  # now, before time is spent on the network
            return {**super().__getitem__(index), "file": file, "made_from": made_from}
        except ANY_FAULT as error:
            return failed(file, error)
        finally:
            return_freed_memory()


def failed(file: str, error: BaseException) -> dict[str, str]:
    logger.debug("%s failed", file, exc_info=error)
    reason, fix = explain(error, file)
    return {"file": file, "reason": reason, "fix": fix}


class SurvivingLoader(DataLoader):
    """`DataLoader`, one scan at a time, that goes on if a worker process dies: killed for its memory, or by a reader that crashes.

    A new worker gets only the scan that was being waited for; if that worker dies too, the scan has failed.
    """

    def __init__(self, dataset: Scans, num_workers: int = 0, **kwargs: Any) -> None:
        # only one scan is read ahead, because a large one takes as much memory as the network
        ahead = {"prefetch_factor": 1, "worker_init_fn": map_large_memory} if num_workers else {}
        self.options = {"batch_size": 1, "num_workers": num_workers, **ahead}
        super().__init__(dataset, **self.options, **kwargs)

    def __iter__(self) -> Iterator[dict]:
        waiting = list(self.sampler)
        alone = False  # True: the next worker gets one scan only
        while waiting:
            try:
                batches = iter(DataLoader(Subset(self.dataset, waiting[: 1 if alone else None]), **self.options))
                if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
                    # PyTorch's handler would raise while another scan is in the network; without it the next wait for a scan raises
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for batch in batches:
                    yield batch
                    waiting.pop(0)
                alone = False
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                if alone:
                    file = self.dataset.data[waiting.pop(0)]["image"]
                    reason = "the process that read it died, for lack of memory or by a fault of the reader"
                    yield self.collate_fn([failed(file, ScanError(file, reason, "Convert it to NIfTI and look at its size."))])
                    alone = False
                else:
                    alone = True


class ScanEvaluator(SupervisedEvaluator):
    """`SupervisedEvaluator` in which an error of one scan does not end the run.

    That holds for whatever reading, the network, the post-processing or the handlers of `MODEL_COMPLETED` raise.

    Args:
        outcomes: is told how every scan has ended.
        kwargs: arguments of `SupervisedEvaluator`.
    """

    def __init__(self, outcomes: Outcomes, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.outcomes = outcomes

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict) -> list | dict:
        (file,) = batchdata["file"]
        if "skipped" in batchdata:
            self.outcomes.skipped(file)
            return []
        if "reason" not in batchdata:
            try:
                output = super()._iteration(engine, batchdata)
            except ANY_FAULT as error:
                batchdata = {key: [value] for key, value in failed(file, error).items()}
                engine.state.output = None  # frees its memory
            else:
                self.outcomes.segmented(file)
                return output
        self.outcomes.failed(file, *batchdata["reason"], *batchdata["fix"])
        return []
