"""The command `compare`: two evaluations side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import fails

from scripts.common.errors import CallError, UserError
from scripts.tools.compare import compare


def evaluation(path: Path, dice: float, asd_mm: float | None, n: int = 5) -> Path:
    row = {
        "source": "a",
        "group": "body",
        "n": n,
        "dice": dice,
        "level_dice": dice / 2,
        "missed": int(asd_mm is None),
        "asd_mm": asd_mm,
        "identified": 0.5,
        "all_levels": 0.0,
    }
    path.write_text(json.dumps({"by_source": [row]}))
    return path


def test_every_metric_before_and_after(tmp_path, capsys):
    rows = compare(evaluation(tmp_path / "a.json", 0.5, None), evaluation(tmp_path / "b.json", 0.8, 1.25))
    assert rows[1] == ["a", "body", "5", "0.500 -> 0.800", "0.250 -> 0.400", "1 -> 0", "- -> 1.25", "0.500 -> 0.500", "0.000 -> 0.000"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["source", "group", "n", "dice", "level_dice", "missed", "asd_mm", "identified", "all_levels"]
    assert lines[1].startswith("a       body   5  0.500 -> 0.800")


def test_different_scans_and_missing_files(tmp_path):
    a, b = evaluation(tmp_path / "a.json", 0.5, 1.0), evaluation(tmp_path / "b.json", 0.5, 1.0, n=6)
    with pytest.raises(UserError, match=r"a.json and .*b.json do not score the same structures"):
        compare(a, b)
    with pytest.raises(UserError, match=r"compare needs --before and --after, .*; --after is missing"):
        compare(a, "")
    with fails(f"{tmp_path / 'c.json'}: no such file. --after takes the metrics.json of an evaluation."):
        compare(a, tmp_path / "c.json")


def test_evaluations_of_other_scans(tmp_path, capsys):
    paths = [evaluation(tmp_path / f"{name}.json", 0.5, 1.0) for name in "abc"]
    for path, digest in zip(paths, ("1", "2")):  # the third was written by an earlier version without the digest
        path.write_text(json.dumps({**json.loads(path.read_text()), "scans_sha256": digest}))
    a, b, old = paths
    with fails(f"{a} and {b} are evaluations of different scans: evaluate both models on one split"):
        compare(a, b)
    for before, after in ((a, a), (a, old), (old, b)):
        assert compare(before, after)[1][:3] == ["a", "body", "5"]


def test_what_is_no_evaluation(tmp_path):
    good, bad = evaluation(tmp_path / "a.json", 0.5, 1.0), tmp_path / "m.json"
    for content, fault in (
        ('{"x": 1}', "not an evaluation, it has no list of rows 'by_source'"),
        ('{"by_source": [{"source": "a"}]}', "not an evaluation, a row of 'by_source' has no 'group'"),
    ):
        bad.write_text(content)
        with fails(f"{bad}: {fault}. --after takes the metrics.json that evaluate.yaml writes."):
            compare(good, bad)
    bad.write_text("{")
    with pytest.raises(CallError, match=r"m.json: not a JSON file \(.*\)\. --before takes the metrics.json of an evaluation\.$"):
        compare(bad, good)
