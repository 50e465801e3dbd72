"""Many masks renamed by a table."""

from __future__ import annotations

from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from conftest import BUNDLE, TOOLS, fails

from scripts.common.errors import CallError
from scripts.labels import decode, label_table, structure
from scripts.tools.rename_table import rename_listed, run


def write(path: Path, *names: str) -> Path:
    """A column of bodies, from the lowest one up, and nothing beside it."""
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
    """As a spreadsheet has saved it: a byte order mark, a number with a point, a column of its own, empty cells."""
    table = tmp_path / "masks" / "names.csv"
    lines = ["mask,note,lowest,lumbar", "a_seg.nii.gz,,L4,", "b/c_seg.nii.gz,six, S1 ,6.0", "d_seg.nii.gz,fine,,", "e_seg.nii.gz,,L5,"]
    table.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    monai.bundle.run("rename", config_file=TOOLS, bundle_root=str(BUNDLE), names=str(table))
    assert [names_in(path) for path in masks.values()] == [["L2", "L3", "L4"], ["L5", "L6", "S1"], ["L3", "L4", "L5"], ["L3", "L4", "L5"]]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{masks['a']}: L3-L5 are L2-L4 now"
    assert printed[-1] == f"{masks['e']}: it has these names already, and no report beside it in which they could be confirmed."
    rename_listed(table)  # once more: nothing is left to do
    assert all("it has these names already" in line for line in capsys.readouterr().out.splitlines())


def test_the_others_are_renamed_where_some_cannot_be(masks, tmp_path):
    table = tmp_path / "masks" / "names.csv"
    table.write_text("mask,lowest,lumbar\nnone_seg.nii.gz,L4,\na_seg.nii.gz,L9,\nd_seg.nii.gz,,six\ne_seg.nii.gz,L4,\n")
    with pytest.raises(SystemExit) as error:
        rename_listed(table)
    first, second, third = str(error.value).splitlines()
    assert first.startswith(f"{tmp_path}/masks/none_seg.nii.gz: no such file")
    assert second.startswith(f"{masks['a']}: --lowest L9: choose one of T8")
    assert third == f"{masks['d']}: the lumbar vertebrae are 'six' in the table; 4, 5 or 6 is needed, or nothing"
    assert [names_in(masks[stem]) for stem in "ade"] == [["L3", "L4", "L5"], ["L3", "L4", "L5"], ["L2", "L3", "L4"]]


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
    for options in ({"prediction": "a_seg.nii.gz"}, {"lowest": "L4"}, {"lumbar": 5}, {"image": "a.nii.gz"}):
        with fails("rename takes --names, a table, in the place of --prediction, --lowest, --lumbar and --image"):
            run(names=table, **options)
