"""A picture of what training sees: scans before and after the random transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Compose

from scripts.common.errors import CallError
from scripts.data.find import case_name
from scripts.figures import draw_batch
from scripts.labels import label_table


def show_batch(
    data: Sequence[dict],
    deterministic_transforms: Sequence[Callable],
    random_transforms: Sequence[Callable],
    count: int,
    output_dir: str | Path,
) -> Path:
    """Draw the first `count` entries of `data` to `<output_dir>/batch.png`; prints and returns the path.

    Args:
        data: entries of a datalist.
        deterministic_transforms: up to the cached scan on the working grid.
        random_transforms: crop and augmentation, applied to the former's result.
    """
    if any(getattr(t, "samples", ("image",)) == ["view"] for t in random_transforms):
        raise CallError("show_batch draws patches for the fine network: leave out --train_only levels")
    before, after = [], []
    read, change = Compose(deterministic_transforms), Compose(random_transforms)  # a new one would draw the same numbers again
    for entry in islice(data, count):
        scan = read(entry)
        sample = change(scan)
        name, spacing_mm = case_name(entry["image"]), scan["image"].pixdim.numpy()
        before.append((*_volumes(scan), spacing_mm, name))
        after.append((*_volumes(sample), spacing_mm, name))
    path = draw_batch(before, after, Path(output_dir) / "batch.png")
    print(path)
    return path


def _volumes(sample: dict[str, MetaTensor]) -> tuple[np.ndarray, np.ndarray]:
    label = np.asarray(sample["label"][0]).astype(np.uint8)
    return np.asarray(sample["image"][0]), np.where(label < len(label_table()), label, 0)  # beyond the table: unknown
