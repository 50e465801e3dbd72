"""Read the `metrics.json` of an evaluation, and check it before it is used."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from scripts.common.errors import CallError, similar_path

WORDS = {"source", "group", "case", "worst_structure"}  # the other columns hold numbers


def read_metrics(path: str | Path, option: str, needed: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """Read a `metrics.json` and check that it holds the needed tables.

    Args:
        path: path of the file.
        option: name of the setting that holds the path.
        needed: tables that it must hold, with their columns.

    Raises:
        CallError: if the file is missing, is no JSON, or lacks a table or a column.
    """
    if not Path(path).is_file():
        raise CallError(f"{path}: no such file. --{option} takes the metrics.json of an evaluation.{similar_path(path)}")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CallError(f"{path}: not a JSON file ({error}). --{option} takes the metrics.json of an evaluation.") from None
    for name, columns in needed.items():
        if fault := _fault(content.get(name) if isinstance(content, dict) else None, name, columns):
            raise CallError(f"{path}: not an evaluation, {fault}. --{option} takes the metrics.json that evaluate.yaml writes.")
    return content


def _fault(rows: Any, name: str, columns: Collection[str]) -> str:
    """Return in a few words what is wrong with a table; an empty text if nothing is."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return f"it has no list of rows '{name}'"
    for row in rows:
        for column in columns:
            if column not in row:
                return f"a row of '{name}' has no '{column}'"
            kind = str if column in WORDS else (int, float)
            if isinstance(row[column], bool) or not isinstance(row[column], (kind, type(None))):
                return f"'{column}' in a row of '{name}' is {row[column]!r}"
    return ""
