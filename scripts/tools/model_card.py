"""Published figures: collect evaluations in `docs/results.json`, and write the model card's tables and the metadata from it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from scripts.common.errors import CallError, UserError, shown
from scripts.common.files import write_json, write_whole
from scripts.common.tables import markdown
from scripts.metrics import cell
from scripts.tools.metrics_file import read_metrics

START, END = "<!-- results: written by the command `record` -->", "<!-- end of results -->"
COLUMNS = {
    "scans": "scans", "n": "n", "dice": "Dice", "dice_sd": "sd", "level_dice": "Dice of the level", "asd_mm": "ASD mm",
    "hd95_mm": "HD95 mm", "missed": "missed", "identified": "identified", "all_levels": "all levels right",
}  # fmt: skip
WORST = {
    "case": "scan", "source": "source", "n": "n", "dice": "Dice", "level_dice": "Dice of the level", "identified": "identified",
    "worst_structure": "worst structure", "worst_level_dice": "its Dice of the level",
}  # fmt: skip
EVAL_METRICS = r'"eval_metrics": \{[^{}]*\}'  # the only line of the metadata that may change, because people edit that file


def record(metrics_file: str | Path, name: str, docs_dir: str | Path, metadata_file: str | Path) -> None:
    """Enter the summary of one evaluation in `results.json` as `name`, replacing an older one, and rewrite the tables in `README.md` and
    `eval_metrics` in the metadata.

    Args:
        metrics_file: `metrics.json` of an evaluation.
        name: what was scored, e.g. "validation".
        docs_dir: folder with `results.json` and `README.md`, the model card.
        metadata_file: the bundle's `metadata.json`.

    Raises:
        CallError: without the evaluation or a name; nothing is written then.
        UserError: without the model card, the markers in it or `eval_metrics`, or if `results.json` is damaged; nothing is written then.
    """
    metrics_file, docs_dir = Path(metrics_file), Path(docs_dir)
    if not isinstance(name, str) or not name or not metrics_file.name:  # the command line reads `a, b` as a list
        raise CallError(f"record needs --name and --metrics, the metrics.json of an evaluation; got '{name}' and '{metrics_file}'")
    new = read_metrics(metrics_file, "metrics", {"by_source": ["source", "group", *COLUMNS], "worst_cases": WORST})
    results_file, card_file = docs_dir / "results.json", docs_dir / "README.md"
    results = _read_results(results_file)
    metadata = Path(metadata_file).read_text(encoding="utf-8")
    results[name] = {"version": json.loads(metadata)["version"], **new}
    card = card_file.read_text(encoding="utf-8") if card_file.is_file() else ""
    if START not in card or END not in card:
        raise UserError(f"{card_file}: the lines '{START}' and '{END}' are missing")
    if not re.search(EVAL_METRICS, metadata):
        raise UserError(f"{metadata_file}: 'eval_metrics' is missing")
    head, tail = card.split(START)[0], card.split(END)[1]
    try:
        card = f"{head}{START}\n{results_tables(results)}\n{END}{tail}"
        metadata = re.sub(EVAL_METRICS, lambda _: f'"eval_metrics": {json.dumps(eval_metrics(results))}', metadata)
    except (KeyError, TypeError, ValueError) as error:  # in an earlier entry
        raise UserError(f"{results_file}: an entry is no evaluation ({error}). Restore the file: git checkout {results_file}") from None
    write_json(results_file, results)
    write_whole(card_file, lambda path: path.write_text(card, encoding="utf-8"))
    write_whole(metadata_file, lambda path: path.write_text(metadata, encoding="utf-8"))
    print(shown(f"{name} is entered in {results_file}, {card_file} and {metadata_file}"))


def _read_results(path: Path) -> dict[str, dict]:
    try:
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}). Restore it: git checkout {path}") from None
    if not isinstance(results, dict):
        raise UserError(f"{path}: no evaluations by name. Restore it: git checkout {path}")
    return results


def eval_metrics(results: dict[str, dict]) -> dict[str, float]:
    """Return `eval_metrics` for the metadata: for each evaluation, the mean Dice of all structures and the share named right."""
    return {
        f"{name}_{key}": round(row[column], 3)
        for name, result in results.items()
        for row in result["by_source"]
        if row["source"] == row["group"] == "all"
        for key, column in (("mean_dice", "dice"), ("identified", "identified"))
    }


def results_tables(results: dict[str, dict]) -> str:
    """Format two Markdown tables: a row per evaluation, source and group, then the worst scans of every evaluation."""
    rows = [[name, row["source"], row["group"], *_cells(row, COLUMNS)] for name, result in results.items() for row in result["by_source"]]
    worst = [[name, *_cells(row, WORST)] for name, result in results.items() for row in result["worst_cases"]]
    first = markdown(["evaluation", "source", "group", *COLUMNS.values()], rows, words=3)
    return f"{first}\n\nThe scans with the lowest Dice of the level in every evaluation:\n\n" + markdown(
        ["evaluation", *WORST.values()], worst, words=3
    )


def _cells(row: dict, columns: dict[str, str]) -> list[str]:
    return [cell(k, row[k]) for k in columns]
