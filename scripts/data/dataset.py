"""The cached dataset of training and validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.data import CacheDataset
from monai.transforms import Compose

from scripts.common.errors import CallError, UserError
from scripts.data.sampling import Draw


class _CarriedError(Exception):
    """Takes a UserError out of a thread."""


class CachedScans(CacheDataset):
    """`CacheDataset` whose random transforms start from the seed of a `Draw`.

    It passes on what is wrong with a scan: the pool of `CacheDataset` waits forever for a thread that ends in SystemExit.
    """

    def __init__(self, data: Sequence[Any], transform: Compose, **kwargs: Any) -> None:
        if not data:
            raise CallError("no scans: a training needs one at least to train on, and one to validate on")
        # flat, because CacheDataset takes a Compose within a Compose for random and caches nothing from there on
        super().__init__(data, transform.flatten(), hash_as_key=True, **kwargs)  # a repeated scan is kept once

    def __getitem__(self, index: Draw | int) -> Any:
        if isinstance(index, Draw):
            self.transform.set_random_state(seed=index.seed)
            index = index.index
        return super().__getitem__(index)

    def _load_cache_item(self, idx: int) -> Any:
        try:
            return super()._load_cache_item(idx)
        except UserError as error:
            raise _CarriedError(error) from None

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list:
        try:
            return super()._fill_cache(indices)
        except _CarriedError as carried:
            raise carried.args[0] from None
