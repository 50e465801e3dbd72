"""Compare two evaluations, e.g. of the weights before and after fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.common.errors import CallError, UserError
from scripts.common.tables import aligned
from scripts.metrics import cell
from scripts.tools.metrics_file import read_metrics

METRICS = ("dice", "level_dice", "missed", "asd_mm", "identified", "all_levels")


def compare(before: str | Path, after: str | Path) -> list[list[str]]:
    """Print and return a row per source and group, with every metric as `before -> after`.

    Args:
        before, after: `metrics.json` of evaluations of the same scans, or the folders that hold them.

    Raises:
        CallError: if a file is missing or no evaluation.
        UserError: if the two are of different scans, or do not score the same structures.
    """
    evaluations = [_read(path, option) for path, option in ((before, "before"), (after, "after"))]
    scans = {evaluation["scans_sha256"] for evaluation in evaluations if "scans_sha256" in evaluation}  # older files lack it
    if len(scans) > 1:
        raise UserError(f"{before} and {after} are evaluations of different scans: evaluate both models on one split")
    tables = [{(row["source"], row["group"]): row for row in evaluation["by_source"]} for evaluation in evaluations]
    if {k: row["n"] for k, row in tables[0].items()} != {k: row["n"] for k, row in tables[1].items()}:
        raise UserError(f"{before} and {after} do not score the same structures")
    rows = [["source", "group", "n", *METRICS]]
    for key, old in tables[0].items():
        new = tables[1][key]
        rows.append([*key, str(old["n"]), *(f"{cell(m, old[m])} -> {cell(m, new[m])}" for m in METRICS)])
    print(aligned(rows, left=[0, 1]))
    return rows


def _read(path: str | Path, option: str) -> dict[str, Any]:
    if not path:
        raise CallError(f"compare needs --before and --after, the metrics.json of two evaluations; --{option} is missing")
    path = Path(path, "metrics.json") if Path(path).is_dir() else path
    return read_metrics(path, option, {"by_source": ["source", "group", "n", *METRICS]})
