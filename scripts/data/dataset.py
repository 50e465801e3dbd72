"""Cache the scans of training and validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from monai.data import CacheDataset
from monai.transforms import Compose
from torch.utils.data import get_worker_info

from scripts.common.cores import cores
from scripts.common.errors import CallError, UserError, shown
from scripts.data.sampling import Draw

logger = logging.getLogger(__name__)
MAX_THREADS = 8  # threads that load scans into memory; each holds a scan before and after resampling


class CarriedError(Exception):
    """The line of a UserError on its way out of a worker process, which a SystemExit would end; `ErrorAdvice` turns it back.

    Args:
        text: the line, or what PyTorch makes of it in the main process: a traceback that ends with this class and the line.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rsplit(f"{CarriedError.__name__}: ", 1)[-1].strip())


class CachedScans(CacheDataset):
    """`CacheDataset` whose random transforms start from the seed of a `Draw`.

    It collects errors of scans itself, because the pool of `CacheDataset` waits forever for a thread that ends in SystemExit.
    """

    def __init__(self, data: Sequence[Any], transform: Compose, **kwargs: Any) -> None:
        if not data:
            raise CallError("no scans: a training needs one at least to train on, and one to validate on")
        self.errors: dict[int, UserError] = {}  # errors of the scans that could not be loaded into memory, by index
        # flattened, because CacheDataset takes a nested Compose for a random transform and caches nothing from there on
        options = {"num_workers": min(MAX_THREADS, cores()), "hash_as_key": True, **kwargs}  # hashing keeps a repeated scan only once
        super().__init__(data, transform.flatten(), **options)

    def __getitem__(self, index: Draw | int) -> Any:
        if isinstance(index, Draw):
            self.transform.set_random_state(seed=index.seed)
            index = index.index
        try:
            return super().__getitem__(index)
        except UserError as error:
            if get_worker_info() is None:
                raise
            raise CarriedError(str(error)) from None

    def _load_cache_item(self, idx: int) -> Any:
        if self.errors:
            return None  # the run ends with the first error, but only after all threads: one that outlives it aborts the process
        try:
            item = super()._load_cache_item(idx)
        except UserError as error:
            self.errors[idx] = error
            return None
        for note in filter(None, getattr(item.get("image"), "meta", {}).get("notes", "").split("\n")):
            logger.warning(shown(f"{self.data[idx]['image']}: {note}"))
        return item

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list:
        cache = super()._fill_cache(indices)
        if self.errors:
            raise self.errors[min(self.errors)]
        return cache
