"""The command `rename` with a table of many masks."""

from __future__ import annotations

from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from conftest import BUNDLE, TOOLS, fails

from scripts.common.errors import CallError
from scripts.data.own_masks import write_report
from scripts.data.scans import read_scan
from scripts.data.volumes import read_volume
from scripts.labels import decode, encode, label_table, structure
from scripts.measure.report import report_on
from scripts.tools.rename import TABLES_FOLLOW, rename, rename_listed


def write(path: Path, *names: str) -> Path:
    """Write a column of bodies, from the lowest one up, and nothing beside it."""
    label = np.zeros((6, 6, 12 * len(names)), np.uint8)
    for place, name in enumerate(names):
        label[1:5, 1:5, 12 * place + 1 : 12 * place + 11] = structure(name).channel
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(decode(label, "verse").astype(np.uint8), np.diag([4.0, 4.0, 2.5, 1.0])), path)
    return path


def names_in(path: Path) -> list[str]:
    values = np.unique(np.asarray(nib.load(path).dataobj))
    return [s.name for s in label_table()[1:] if s.verse in values]


@pytest.fixture
def masks(tmp_path) -> dict[str, Path]:
    return {stem: write(tmp_path / "masks" / f"{stem}_seg.nii.gz", "L5", "L4", "L3") for stem in ("a", "b/c", "d", "e")}


def test_masks_of_a_table(masks, tmp_path, capsys):
    """The table is one that a spreadsheet has saved: a byte order mark, a number with a point, another column, empty cells."""
    table = tmp_path / "masks" / "names.csv"
    lines = ["mask,note,lowest,lumbar", "a_seg.nii.gz,,L4,", "b/c_seg.nii.gz,six, S1 ,6.0", "d_seg.nii.gz,fine,,", "e_seg.nii.gz,,L5,"]
    table.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    monai.bundle.run("rename", config_file=TOOLS, bundle_root=str(BUNDLE), names=str(table))
    assert [names_in(path) for path in masks.values()] == [["L2", "L3", "L4"], ["L5", "L6", "S1"], ["L3", "L4", "L5"], ["L3", "L4", "L5"]]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{masks['a']}: L3-L5 renamed to L2-L4"
    assert printed[-2] == f"{masks['e']}: it has these names already, and there is no report beside it in which to confirm them."
    assert printed[-1] == "2 masks renamed or confirmed, 1 had these names already, 0 failed"
    rename_listed(table)  # once more: nothing is left to do
    *lines, last = capsys.readouterr().out.splitlines()
    assert all("it has these names already" in line for line in lines)
    assert last == "0 masks renamed or confirmed, 3 had these names already, 0 failed"


def test_the_others_are_renamed_where_some_cannot_be(masks, tmp_path, capsys):
    table = tmp_path / "masks" / "names.csv"
    table.write_text("mask,lowest,lumbar\nnone_seg.nii.gz,L4,\na_seg.nii.gz,L9,\nd_seg.nii.gz,,six\ne_seg.nii.gz,L4,\n")
    with pytest.raises(SystemExit) as error:
        rename_listed(table)
    first, second, third = str(error.value).splitlines()
    assert first.startswith(f"{tmp_path}/masks/none_seg.nii.gz: no such file. Correct its row in {table}.")
    assert second.startswith(f"{masks['a']}: --lowest L9: choose one of T8")
    assert third == f"{masks['d']}: the number of lumbar vertebrae is 'six' in the table; 4, 5 or 6 is needed, or nothing"
    assert [names_in(masks[stem]) for stem in "ade"] == [["L3", "L4", "L5"], ["L3", "L4", "L5"], ["L2", "L3", "L4"]]
    assert capsys.readouterr().out.splitlines()[-1] == "1 mask renamed or confirmed, 0 had these names already, 3 failed"


def test_the_line_on_tables_comes_once(masks, tmp_path, capsys):
    """Two of the masks have a report with `made_from`, as inference writes it."""
    for stem in "ad":
        mask = masks[stem]
        volume = read_volume(mask)
        scan = mask.with_name(f"{stem}.nii.gz")
        nib.save(nib.Nifti1Image(np.random.default_rng(0).random(volume.data.shape).astype(np.float32), volume.affine), scan)
        report, _ = report_on(encode(volume.data), volume.affine, read_scan(scan), "verse", {})
        write_report(mask, {**report, "made_from": {"scan": "1 byte"}, "source": str(scan)})
    table = tmp_path / "masks" / "names.csv"
    table.write_text("mask,lowest\na_seg.nii.gz,L4\nd_seg.nii.gz,L5\ne_seg.nii.gz,L4\n")
    rename_listed(table)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [TABLES_FOLLOW, "3 masks renamed or confirmed, 0 had these names already, 0 failed"]
    assert printed.count(TABLES_FOLLOW) == 1
    assert f"{masks['d']}: the names L3-L5 are confirmed" in printed


def test_tables_that_cannot_be(tmp_path):
    table = tmp_path / "names.csv"
    with pytest.raises(CallError, match=r"names\.csv: no such file"):
        rename_listed(table)
    table.write_text("mask,lowest\na_seg.nii.gz,\n")
    with fails(f"{table}: no row has a value in a column 'lowest' or 'lumbar'. Add the columns, and fill in what is right."):
        rename_listed(table)
    table.write_text("mask;lowest\na_seg.nii.gz;L4\n")
    with fails(f"{table}: no column 'mask'. Save it with commas, or move it away."):
        rename_listed(table)
    for other in (tmp_path, write(tmp_path / "a_seg.nii.gz", "L5")):
        with fails(f"--names {other}: a .csv file is needed, with the columns 'mask' and 'lowest' or 'lumbar'"):
            rename_listed(other)
    for options in ({"prediction": "a_seg.nii.gz"}, {"lowest": "L4"}, {"lumbar": 5}, {"image": "a.nii.gz"}):
        with fails("rename takes --names, a table, in the place of --prediction, --lowest, --lumbar and --image"):
            rename(names=table, **options)
