"""Tables that were saved again by a spreadsheet."""

from __future__ import annotations

import csv

import pytest
from conftest import fails
from ignite.engine import Engine, Events

from scripts.batch.outcomes import Outcomes
from scripts.common.tables import check_column, markdown, read_rows


def test_a_table_without_the_column(tmp_path):
    table = tmp_path / "a.csv"
    assert read_rows(table, "mask") == []
    table.touch()
    assert read_rows(table, "mask") == []
    table.write_text("name,mask\nL1,a\n")
    assert read_rows(table, "mask") == [{"name": "L1", "mask": "a"}]
    table.write_text("mask;name\na;L1\n")
    for read in (read_rows, check_column):
        with fails(f"{table}: no column 'mask'. Save it with commas, or move it away."):
            read(table, "mask")
    table.write_text("mask\n" + "x" * 200_000)  # more than the csv module takes for a field
    with fails(f"{table}: not a CSV table (field larger than field limit (131072)). Move it away."):
        check_column(table, "mask")
    with pytest.raises(csv.Error):
        read_rows(table, "mask")


def test_a_bar_in_a_cell_is_no_new_cell():
    assert markdown(["a", "b"], [["x|y", "1"]], words=1).splitlines() == ["| a | b |", "| --- | ---: |", "| x&#124;y | 1 |"]


def test_failures_with_semicolons_stay(tmp_path):
    table, content = tmp_path / "failures.csv", "file;reason;fix\na.nii;x;y\n"
    table.write_text(content)
    steps = []
    engine = Engine(lambda engine, batch: steps.append(batch))
    outcomes = Outcomes(str(tmp_path))
    outcomes.attach(engine)
    with fails(f"{table}: no column 'file'. Save it with commas, or move it away."):
        engine.run([0])
    assert steps == []
    outcomes.failed("b.nii", "bad", "Mend it.")  # the table may be saved so during a run: only the table of that run is lost
    outcomes.close(None)
    assert outcomes.closing_line.endswith("Save it with commas, or move it away. The lines above say which scans failed and why.")
    assert table.read_text() == content


def test_failures_with_a_column_of_ones_own_stay(tmp_path):
    scan = tmp_path / "a.nii"
    scan.touch()
    table = tmp_path / "failures.csv"
    table.write_text(f"file,reason,fix,note\n{scan},x,y,ask Anna\n")
    engine = Engine(lambda engine, batch: None)
    outcomes = Outcomes(str(tmp_path))
    outcomes.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: outcomes.failed("b.nii", "bad", "Mend it."))
    engine.run([0])
    assert table.read_text().splitlines() == ["file,reason,fix,note", f"{scan},x,y,ask Anna", "b.nii,bad,Mend it.,"]


def test_a_failure_that_was_mended_goes_whatever_its_folder_is_called(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii").touch()
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    for mended in (tmp_path / "scans" / "a.nii", tmp_path / "link" / "a.nii"):
        outcomes = Outcomes(str(tmp_path / "out"))
        (tmp_path / "out").mkdir(exist_ok=True)
        outcomes.failed(f"{tmp_path}/out/../scans/a.nii", "bad", "Mend it.")
        assert (tmp_path / "out" / "failures.csv").exists()
        later = Outcomes(str(tmp_path / "out"))
        later.segmented(str(mended))
        later.close(None)
        assert not (tmp_path / "out" / "failures.csv").exists()
        assert later.closing_line == f"1 segmented, 0 skipped (already done), 0 failed: see {tmp_path}/out"


def test_a_scan_that_is_a_link_to_another_one_has_a_failure_of_its_own(tmp_path):
    (tmp_path / "a.nii").touch()
    (tmp_path / "b.nii").symlink_to(tmp_path / "a.nii")
    first, later = Outcomes(str(tmp_path)), Outcomes(str(tmp_path))
    first.failed(str(tmp_path / "a.nii"), "bad", "Mend it.")
    later.segmented(str(tmp_path / "b.nii"))
    later.close(None)
    assert (tmp_path / "failures.csv").read_text().splitlines()[1:] == [f"{tmp_path}/a.nii,bad,Mend it."]
