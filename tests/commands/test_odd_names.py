"""File names in other encodings, and edited tables and reports."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import fails, files, infer, last_line

from scripts.common.errors import UserError, explain, shown
from scripts.common.tables import read_rows
from scripts.data.masks import write_label_map
from scripts.data.own_masks import check_replaceable, signature

LATIN = os.fsdecode(b"R\xfccken")  # not UTF-8, as in names from old archives


def test_names_that_are_no_utf8(weights, two, tmp_path, capfd):
    (two / "a.nii.gz").rename(two / f"{LATIN}.nii.gz")
    (two / f"{LATIN}_bad.nii.gz").write_text("x")
    (two / "line\nbreak.nii.gz").write_text("x")
    out = tmp_path / "out"
    assert infer(weights, out, two) == 1
    printed = capfd.readouterr().out.splitlines()
    assert printed[-1].startswith("2 segmented, 0 skipped (already done), 2 failed")
    assert len([line for line in printed if "R\\udcfccken_bad.nii.gz: cannot be read" in line]) == 1
    assert len([line for line in printed if "line\\nbreak.nii.gz: cannot be read" in line]) == 1
    assert {f"{LATIN}_seg{suffix}" for suffix in (".nii.gz", ".png", ".json")} < files(out)
    assert {Path(row["file"]).name for row in read_rows(out / "failures.csv")} == {f"{LATIN}_bad.nii.gz", "line\nbreak.nii.gz"}
    assert f"{LATIN}_seg.nii.gz" in {row["mask"] for row in read_rows(out / "structures.csv")}
    assert infer(weights, out, two) == 1
    assert last_line(capfd).startswith("0 segmented, 2 skipped (already done), 2 failed")


def test_tables_that_a_spreadsheet_has_saved(weights, two, tmp_path, capfd):
    out = tmp_path / "out"
    assert infer(weights, out, two, image=str(two / "a.nii.gz"), figures=False) == 0
    (tmp_path / f"{LATIN}.nii.gz").touch()
    table = (out / "structures.csv").read_bytes()
    (out / "structures.csv").write_bytes(b"\xef\xbb\xbf" + table.replace(b"\n", b"\r\n"))
    (out / "failures.csv").write_bytes(b"file,reason,fix\r\n" + os.fsencode(tmp_path) + b"/R\xfccken.nii.gz,x,y\r\n")
    (two / "b.nii.gz").write_text("x")
    assert infer(weights, out, two, figures=False) == 1
    assert last_line(capfd).startswith("0 segmented, 1 skipped (already done), 1 failed")
    assert [Path(row["file"]).name for row in read_rows(out / "failures.csv")] == [f"{LATIN}.nii.gz", "b.nii.gz"]
    assert {row["mask"] for row in read_rows(out / "structures.csv")} == {"a_seg.nii.gz"}


@pytest.mark.parametrize(
    "edit",
    [
        *({"structures": s} for s in (None, 5, [5], [{"value": 20}], [{"name": "L1", "cut_by_view": 3}], [{"name": "L1", "measures": 3}])),
        {"warnings": None},
        {"warnings": [5]},
    ],
)
def test_a_report_that_was_edited_is_made_anew(weights, two, tmp_path, capfd, edit):
    options = {"image": str(two / "a.nii.gz"), "figures": False}
    assert infer(weights, tmp_path, two, **options) == 0
    report = tmp_path / "a_seg.json"
    content = json.loads(report.read_text())
    report.write_text(json.dumps({**content, **edit}))
    assert infer(weights, tmp_path, two, **options) == 0
    assert last_line(capfd).startswith("1 segmented, 0 skipped (already done), 0 failed: see ")
    assert json.loads(report.read_text()) == content


def test_no_table_at_all(weights, two, tmp_path, capfd):
    (tmp_path / "structures.csv").write_text("mask\n" + "x" * 200_000)  # more than the csv module takes for a field
    assert infer(weights, tmp_path, two, image=str(two / "a.nii.gz"), figures=False) == 1
    line = f"{tmp_path}/structures.csv: not a CSV table (field larger than field limit (131072)). Move it away."
    assert line in capfd.readouterr().err.splitlines()
    assert "a_seg.nii.gz" not in files(tmp_path)  # found before any work was done


def test_shown():
    assert shown(f"a\tb\n{LATIN} ü") == "a\\tb\\nR\\udcfccken ü"


@pytest.mark.parametrize(("code", "fix"), [("ENAMETOOLONG", "Give it a shorter name"), ("ENOTDIR", "A file lies where a folder")])
def test_errors_that_are_not_of_the_scan(code, fix):
    number = getattr(errno, code)
    assert explain(OSError(number, os.strerror(number), "x"), "scan")[1].startswith(fix)


def test_scans_of_one_name_in_two_folders(weights, two, tmp_path, capfd):
    out, scans = tmp_path / "out", [tmp_path / name / "T2.nii.gz" for name in ("p1", "p2")]
    for path in scans:
        path.parent.mkdir()
        shutil.copy2(two / "a.nii.gz", path)  # as old as the other
    assert infer(weights, out, two, image=str(scans[0]), figures=False) == 0
    content = (out / "T2_seg.nii.gz").read_bytes()
    assert infer(weights, out, two, image=str(scans[1]), figures=False) == 1
    assert f"{scans[1]}: {out}/T2_seg.nii.gz is there already, the mask of {scans[0]}. Move it, set" in capfd.readouterr().out
    assert (out / "T2_seg.nii.gz").read_bytes() == content
    shutil.move(scans[0], tmp_path / "T2.nii.gz")  # the same scan elsewhere
    assert infer(weights, out, two, image=str(tmp_path / "T2.nii.gz"), figures=False) == 0
    assert last_line(capfd).startswith("0 segmented, 1 skipped (already done), 0 failed: see ")


def test_only_half_files_are_replaced_unasked(tmp_path):
    mask = tmp_path / "a_seg.nii.gz"
    for content in (b"", b"\x1f", gzip.compress(b"x" * 1000)[:20]):
        mask.write_bytes(content)
        check_replaceable(mask, "a")
    for content in (b"\x5c\x01\x00\x00 not compressed", gzip.compress(b"x")):
        mask.write_bytes(content)
        with pytest.raises(UserError, match="not as this bundle has written it"):
            check_replaceable(mask, "a")


def test_a_link_to_a_missing_file_is_not_replaced(tmp_path):
    """This is how git-annex and datalad keep labels that were not fetched."""
    mask = tmp_path / "a_seg.nii.gz"
    mask.symlink_to(".git/annex/objects/a")
    fix = "Move it, set another --output_dir, or set --overwrite True if it may go."
    with fails(f"a: {mask} is there already, a link to a file that is missing (of git-annex or datalad?). {fix}"):
        check_replaceable(mask, "a")


def test_a_mask_without_its_report_is_replaced_only_as_it_was_drawn(tmp_path):
    """Either a run was killed before the report, or the mask was corrected in an editor that keeps the header, and has no report."""
    mask, values = tmp_path / "a_seg.nii.gz", np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_label_map(values, np.diag([-1.0, 2.0, 3.0, 1.0]), mask, signature(values))
    check_replaceable(mask, "a")
    drawn = nib.load(mask)
    edited = values.copy()
    edited[1, 2, 3] = 0
    nib.save(nib.Nifti1Image(edited, None, drawn.header), mask)
    assert bytes(nib.load(mask).header["descrip"]).startswith(b"spine_mri_segmentation ")
    with pytest.raises(UserError, match="not as this bundle has written it"):
        check_replaceable(mask, "a")
    nib.save(nib.Nifti1Image(values, None, drawn.header), mask)
    check_replaceable(mask, "a")
