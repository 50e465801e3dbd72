"""Accuracy per structure, on the label's own grid and in mm. A structure that the reference lacks is not scored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric
from scipy import ndimage

from scripts.common.arrays import occupied_box
from scripts.labels import label_table

FORMATS = {
    "dice": ".3f", "dice_sd": ".3f", "level_dice": ".3f", "worst_level_dice": ".3f", "asd_mm": ".2f", "hd95_mm": ".2f", "identified": ".3f",
    "all_levels": ".3f", "missed": ".0f", "bias": ".2f", "mean_error": ".2f", "max_error": ".2f",
}  # fmt: skip


def cell(column: str, value: float | str | None) -> str:
    """Format a value for a table of accuracies, with the digits of its column; `-` if there is none."""
    return "-" if value is None else format(value, FORMATS.get(column, ""))


class StructureDice(CumulativeIterationMetric):
    """Dice per channel of label maps (B1XYZ, channel indices), shape BC; NaN for a channel that the reference lacks.

    The first column, that of the background, holds a number for the files of prediction and label instead (NaN if they are not known).
    It makes a scan count once that two processes had, so that none was idle; files are known only in batches of one.
    The aggregate is the mean over all structures of all scans. Structures that a scan has no labels of cost nothing.
    """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs) -> torch.Tensor:
        channels = len(label_table())
        named = isinstance(y, MetaTensor) and "filename_or_obj" in y.meta
        if named and len(y) > 1:
            raise ValueError(f"one scan at a time, got a batch of {len(y)}: its metadata do not tell which file is which")
        files = [part.meta.get("filename_or_obj") for part in (y_pred, y) if isinstance(part, MetaTensor)]  # scans may share a label
        scan = _number_of(f"{files}") if named else torch.nan
        scores = []
        for predicted, truth in zip(y_pred.flatten(1).long().cpu(), y.flatten(1).long().cpu()):
            n_truth = torch.bincount(truth, minlength=channels).float()
            n_predicted = torch.bincount(predicted, minlength=channels)
            n_both = torch.bincount(truth[truth == predicted], minlength=channels)
            dice = 2 * n_both / (n_truth + n_predicted)
            scores.append(torch.cat([torch.tensor([scan], dtype=torch.float64), torch.where(n_truth > 0, dice, torch.nan)[1:].double()]))
        return torch.stack(scores)

    def aggregate(self) -> torch.Tensor:
        dice_of_scan = {}
        for i, row in enumerate(self.get_buffer()):
            scan = float(row[0]) if row[0].isfinite() else ("file unknown", i)
            dice_of_scan[scan] = row[1:]
        return torch.stack(list(dice_of_scan.values())).nanmean()


def _number_of(name: str) -> float:
    """Return a number that identifies a file in every process; MONAI's metrics gather tensors only."""
    return float(int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=6).digest(), "big"))


def score_structures(reference: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float]) -> list[dict]:
    """Score every structure of the reference.

    Args:
        reference, predicted: channel indices, shape XYZ, same grid.
        spacing_mm: voxel size.

    Returns:
        a row per structure, with `structure`, `group` and
        `dice`: with the predicted instance of the same kind that covers most of the structure, whatever its level;
        `level_dice`: with the predicted structure of the same level, 0 where the level is wrong;
        `asd_mm`, `hd95_mm`: symmetric surface distance to that instance, mean and 95th percentile (the larger of the two directions),
        infinite where there is no instance;
        `identified`: 1.0 if that instance carries the right level, else 0.0.
    """
    table = label_table()
    kind_of = np.array([s.kind for s in table])
    rows = []
    for channel in np.unique(reference[reference > 0]).tolist():
        truth = reference == channel
        hits = np.bincount(predicted[truth], minlength=len(table)) * (kind_of == table[channel].kind)
        best = int(hits.argmax()) if hits.any() else 0
        found = predicted == best if best else np.zeros_like(truth)
        asd, hd95 = surface_distances_mm(truth, found, spacing_mm) if best else (np.inf, np.inf)
        rows.append(
            {
                "structure": table[channel].name,
                "group": table[channel].kind,
                "dice": _dice(truth, found),
                "level_dice": _dice(truth, predicted == channel),
                "asd_mm": asd,
                "hd95_mm": hd95,
                "identified": float(best == channel),
            }
        )
    return rows


def surface_distances_mm(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """Return mean and 95th percentile of the distances between the surface voxels of two non-empty masks, both ways.

    They equal MONAI's `compute_average_surface_distance` (symmetric) and `compute_hausdorff_distance`, from one pair of distance maps.
    """
    box = occupied_box(a | b)
    a, b = np.pad(a[box], 1), np.pad(b[box], 1)
    edge_a, edge_b = a & ~ndimage.binary_erosion(a), b & ~ndimage.binary_erosion(b)
    a_to_b = ndimage.distance_transform_edt(~edge_b, sampling=spacing_mm)[edge_a]
    b_to_a = ndimage.distance_transform_edt(~edge_a, sampling=spacing_mm)[edge_b]
    mean = (a_to_b.sum() + b_to_a.sum()) / (len(a_to_b) + len(b_to_a))
    return float(mean), float(max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95)))


def scans_digest(images: Iterable[str]) -> str:
    """Return the sha256 of the sorted paths of scans, relative to the folder that holds them all, which may move."""
    paths = {Path(image) for image in images}
    shared = max((len(folder.parts) for folder in set.intersection(*({*path.parents} for path in paths))), default=0)
    names = sorted("/".join(path.parts[shared:]) for path in paths)
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


def summarise(rows: Sequence[dict], by: Sequence[str]) -> list[dict]:
    """Summarise rows of `score_structures` by some of their columns: one row per group, and a last one over all.

    Mean and standard deviation are over structures. Distances leave out the structures that were not found at all, whose number is
    `missed`; `all_levels` is the share of scans in which every structure carries its level.

    Args:
        rows: with `case`, `source` and, where cases share a name, `image` added.
        by: columns to group by.
    """
    groups: dict[tuple[str, ...], list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in by), []).append(row)
    order = {s.name: s.channel for s in label_table()}  # structures are sorted from top to bottom, anything else by name
    ordered = sorted(groups.items(), key=lambda item: [(order.get(k, 0), k) for k in item[0]])
    everything = (("all",) * len(by), list(rows))
    return [{**dict(zip(by, key)), **_summary(group)} for key, group in [*ordered, everything]]


def worst_cases(rows: Sequence[dict], count: int = 3) -> list[dict]:
    """Return the scans with the lowest mean `level_dice`, worst first: their means and the worst structure of each."""
    ranked = sorted(_by_scan(rows), key=lambda scan_rows: np.mean([r["level_dice"] for r in scan_rows]))
    return [_case_summary(scan_rows) for scan_rows in ranked[:count]]


def _case_summary(rows: Sequence[dict]) -> dict:
    worst = min(rows, key=lambda r: r["level_dice"])
    return {
        "case": rows[0]["case"],
        "source": rows[0]["source"],
        "n": len(rows),
        **{column: float(np.mean([r[column] for r in rows])) for column in ("dice", "level_dice", "identified")},
        "worst_structure": worst["structure"],
        "worst_level_dice": worst["level_dice"],
    }


def _by_scan(rows: Sequence[dict]) -> list[list[dict]]:
    scans: dict[tuple, list[dict]] = {}
    for row in rows:
        scans.setdefault((row["source"], row["case"], row.get("image")), []).append(row)
    return list(scans.values())


def _summary(rows: list[dict]) -> dict:
    scans = _by_scan(rows)
    dice = np.array([r["dice"] for r in rows])
    found = [r for r in rows if np.isfinite(r["asd_mm"])]
    distances = {k: float(np.mean([r[k] for r in found])) if found else None for k in ("asd_mm", "hd95_mm")}
    return {
        "scans": len(scans),
        "n": len(rows),
        "dice": float(dice.mean()),
        "dice_sd": float(dice.std()),
        "level_dice": float(np.mean([r["level_dice"] for r in rows])),
        **distances,
        "missed": len(rows) - len(found),
        "identified": float(np.mean([r["identified"] for r in rows])),
        "all_levels": float(np.mean([min(r["identified"] for r in scan_rows) for scan_rows in scans])),
    }


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))
