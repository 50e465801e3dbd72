"""Draw what training sees: scans before and after the random transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Compose

from scripts.data.find import case_name
from scripts.figures import draw_batch
from scripts.labels import label_table


def show_batch(
    data: Sequence[dict],
    deterministic_transforms: Sequence[Callable],
    random_transforms: Sequence[Callable],
    count: int,
    output_dir: str | Path,
    view_voxel: Sequence[int],
) -> Path:
    """Draw the first entries of a dataset before and after the random transforms; print and return the path of the picture.

    Labels are drawn as the loss sees them, with the discs that geometry tells between bodies (`scripts/data/complete_labels.py`).

    Args:
        data: entries of a datalist.
        deterministic_transforms: transforms up to the cached scan on the working grid.
        random_transforms: crop and augmentation of such a scan, to `image` with `label`, or `view` with `view_label`, or both.
        count: number of entries.
        output_dir: folder for `batch.png`.
        view_voxel: size of a voxel of the view in voxels of the scan.
    """
    columns: dict[str, list[tuple]] = {}
    # made once, because a new Compose would draw the same random numbers for every scan
    read, change = Compose(deterministic_transforms), Compose(random_transforms)
    for entry in islice(data, count):
        scan = read(entry)
        sample = change(scan)
        name, spacing_mm = case_name(entry["image"]), scan["image"].pixdim.numpy()
        for heading, volumes, image, label, voxel_mm in (
            ("preprocessed, labels completed", scan, "image", "label", spacing_mm),
            ("patch for the fine network", sample, "image", "label", spacing_mm),
            ("view for the coarse network", sample, "view", "view_label", spacing_mm * view_voxel),
        ):
            if image in volumes:
                shown = np.asarray(volumes[image][0]), _channels(volumes[label][0]), voxel_mm, name
                columns.setdefault(heading, []).append(shown)
    path = draw_batch(columns, Path(output_dir) / "batch.png")
    print(path)
    return path


def _channels(label: np.ndarray | MetaTensor) -> np.ndarray:
    """Convert a label to uint8, with background for values that are no channel, such as the mark of unknown voxels."""
    values = np.asarray(label).astype(np.uint8)
    return np.where(values < len(label_table()), values, 0)
