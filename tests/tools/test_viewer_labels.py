"""The command `viewer_labels`."""

from __future__ import annotations

import json

import monai.bundle
import pytest
from conftest import BUNDLE, TOOLS

from scripts.common.errors import CallError
from scripts.figures import structure_color
from scripts.labels import label_table, structure, use_table
from scripts.tools.viewer_labels import viewer_labels


def test_every_number_has_its_name_and_the_colour_of_the_pictures(tmp_path, capsys):
    monai.bundle.run("viewer_labels", config_file=TOOLS, bundle_root=str(BUNDLE), output_dir=str(tmp_path))
    snap, slicer = tmp_path / "verse_itksnap.txt", tmp_path / "verse_slicer.ctbl"
    assert capsys.readouterr().out.splitlines()[-2:] == [str(snap), str(slicer)]
    lines = snap.read_text().splitlines()
    assert lines[0].startswith("#")
    assert lines[1] == '0 0 0 0 0 0 0 "Clear Label"'
    assert lines[2] == '15 255 122 184 1 1 1 "T8"'
    assert len(lines) == 1 + len(label_table())
    rows = [line.split() for line in slicer.read_text().splitlines()[1:]]
    assert rows[0] == ["0", "background", "0", "0", "0", "0"]
    assert {row[1]: int(row[0]) for row in rows} == {s.name: s.verse for s in label_table()}
    for _, name, *rgba in rows[1:]:
        assert [int(n) for n in rgba] == [*(round(255 * c) for c in structure_color(structure(name).channel)), 255]


def test_a_number_that_two_share_has_one_name(tmp_path):
    _, slicer = viewer_labels(tmp_path, "totalspineseg")
    rows = [line.split() for line in slicer.read_text().splitlines()[1:]]
    assert [row[1] for row in rows if row[0] == "100"] == ["L5/S1"]
    assert len({row[0] for row in rows}) == len(rows) == len(label_table()) - 1


def test_spider_has_no_number_for_l6_and_s1(tmp_path):
    snap, slicer = viewer_labels(tmp_path, "spider")
    rows = [line.split() for line in slicer.read_text().splitlines()[1:]]
    assert len({row[0] for row in rows}) == len(rows)
    assert {row[1]: int(row[0]) for row in rows} == {"background": 0} | {
        s.name: s.spider for s in label_table()[1:] if s.spider and s.name not in ("L6", "L6/S1")
    }
    assert "in masks without an L6" in snap.read_text().splitlines()[0]


def test_names_of_a_table_of_ones_own(tmp_path, monkeypatch):
    rows = [("background", 0), ('upper "body"', 7), ("lower body", 8)]
    table = [{"channel": i, "name": name, "verse": number} for i, (name, number) in enumerate(rows)]
    (tmp_path / "labels.json").write_text(json.dumps(table))
    use_table(str(tmp_path / "labels.json"))
    try:
        snap, slicer = viewer_labels(tmp_path / "out")
    finally:
        use_table()
    assert [line.split('"')[1] for line in snap.read_text().splitlines()[2:]] == ["upper_body", "lower_body"]
    assert [len(line.split()) for line in slicer.read_text().splitlines()[1:]] == [6, 6, 6]


def test_a_scheme_that_does_not_exist(tmp_path):
    with pytest.raises(CallError, match="label scheme 'vrse' does not exist"):
        viewer_labels(tmp_path, "vrse")
    assert not list(tmp_path.iterdir())
