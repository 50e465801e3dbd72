"""Two evaluations side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.tools.compare import compare


def evaluation(path: Path, dice: float, asd_mm: float | None, n: int = 5) -> Path:
    row = {
        "source": "a",
        "group": "body",
        "n": n,
        "dice": dice,
        "level_dice": dice / 2,
        "asd_mm": asd_mm,
        "identified": 0.5,
        "all_levels": 0.0,
    }
    path.write_text(json.dumps({"by_source": [row]}))
    return path


def test_every_metric_before_and_after(tmp_path, capsys):
    rows = compare(evaluation(tmp_path / "a.json", 0.5, None), evaluation(tmp_path / "b.json", 0.8, 1.25))
    assert rows[1] == ["a", "body", "5", "0.500 -> 0.800", "0.250 -> 0.400", "- -> 1.25", "0.500 -> 0.500", "0.000 -> 0.000"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["source", "group", "n", "dice", "level_dice", "asd_mm", "identified", "all_levels"]
    assert lines[1].startswith("a       body   5  0.500 -> 0.800")


def test_different_scans_and_missing_files(tmp_path):
    a, b = evaluation(tmp_path / "a.json", 0.5, 1.0), evaluation(tmp_path / "b.json", 0.5, 1.0, n=6)
    with pytest.raises(UserError, match=r"a.json and .*b.json do not score the same structures"):
        compare(a, b)
    with pytest.raises(UserError, match=r"compare needs --before and --after, .* '' is not a file"):
        compare(a, "")
