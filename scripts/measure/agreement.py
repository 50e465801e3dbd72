"""How far the measures of a predicted mask are from those of a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.labels import label_table, structure
from scripts.measure.spine import measure_spine

CLASSES = {"height_loss_grade"}  # measures whose differences mean nothing


def measure_errors(
    reference: np.ndarray, predicted: np.ndarray, affine: np.ndarray, cut: Mapping[str, Sequence[str]] | None = None
) -> list[dict[str, Any]]:
    """Measure two masks of a scan, and return one row per structure and measure that both have.

    Args:
        reference, predicted: channel indices, shape XYZ, on one grid.
        affine: 4x4, voxel -> world mm, RAS.
        cut: names of structures, with the faces of the view that cut them, see `measure_spine`.

    Returns:
        rows with `structure` (or `spine`), `group` (`body`, `disc` or `spine`), `measure`, and its values `reference` and `predicted`.
    """
    truth, found = (measure_spine(label, affine, cut) for label in (reference, predicted))
    pairs = {**{name: (row, found.structures.get(name, {})) for name, row in truth.structures.items()}, "spine": (truth.spine, found.spine)}
    return [
        {
            "structure": name,
            "group": structure(name).kind if name != "spine" else name,
            "measure": key,
            "reference": value,
            "predicted": predicted_row[key],
        }
        for name, (row, predicted_row) in pairs.items()
        for key, value in row.items()
        if key in predicted_row and key not in CLASSES and not isinstance(value, str)
    ]


def summarise_errors(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Summarise rows of `measure_errors` per `group` and `measure`, in the units of the measure.

    Returns:
        rows with the number `n`, the mean of predicted - reference (`bias`), the mean of its absolute values (`mean_error`) and the largest
        of them (`max_error`).
    """
    errors: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        errors.setdefault((row["group"], row["measure"]), []).append(row["predicted"] - row["reference"])
    kinds = [*dict.fromkeys(s.kind for s in label_table()), "spine"]
    return [
        {
            "group": group,
            "measure": measure,
            "n": len(of_measure),
            "bias": float(np.mean(of_measure)),
            "mean_error": float(np.mean(np.abs(of_measure))),
            "max_error": float(np.max(np.abs(of_measure))),
        }
        for (group, measure), of_measure in sorted(errors.items(), key=lambda item: (kinds.index(item[0][0]), item[0][1]))
    ]
