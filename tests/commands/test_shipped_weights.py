"""The shipped weights keep their accuracy: floors a little below what they reached when they were released."""

from __future__ import annotations

import json
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from conftest import BUNDLE, EVALUATE, TRAIN

from scripts.labels import label_table
from scripts.phantoms.phantom import write_cohort

WEIGHTS = BUNDLE / "models" / "model.pt"
REAL = BUNDLE.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="no weights are shipped")


def evaluate(dataset_dir: Path, entries: list[dict], output_dir: Path) -> dict[tuple[str, str], dict]:
    """Evaluate with the shipped configs; return the summary by source and group."""
    output_dir.mkdir(exist_ok=True)
    (output_dir / "datalist.json").write_text(json.dumps({"validation": entries}))
    options = {"dataset_dir": str(dataset_dir), "datalist": str(output_dir / "datalist.json"), "output_dir": str(output_dir)}
    monai.bundle.run(config_file=[TRAIN, EVALUATE], bundle_root=str(BUNDLE), figures=False, **options)
    rows = json.loads((output_dir / "metrics.json").read_text())["by_source"]
    return {(row["source"], row["group"]): row for row in rows}


def test_phantoms(tmp_path):
    write_cohort(tmp_path, training=0, validation=2, testing=0, seed=11, workers=1)
    entries = json.loads((tmp_path / "datalist.json").read_text())["validation"]
    scores = evaluate(tmp_path, entries, tmp_path / "out")
    assert scores["phantom", "body"]["dice"] > 0.92
    assert scores["phantom", "disc"]["dice"] > 0.85
    assert scores["all", "all"]["identified"] > 0.94


def test_names_do_not_hang_on_where_a_scan_ends(tmp_path):
    """Scans that lack their upper 30 % get the right names too."""
    write_cohort(tmp_path, training=0, validation=2, testing=0, seed=11, workers=1, contrast="T2w")
    entries = json.loads((tmp_path / "datalist.json").read_text())["validation"]
    for path in (tmp_path / entry[key] for entry in entries for key in ("image", "label")):
        volume = nib.as_closest_canonical(nib.load(path))
        nib.save(volume.slicer[:, :, : int(0.7 * volume.shape[2])], path)
    assert evaluate(tmp_path, entries, tmp_path / "out")["all", "all"]["identified"] > 0.9


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
def test_real_scans(tmp_path):
    listed = json.loads((REAL / "datalist.json").read_text())["validation"]
    entries = [e for e in listed if "zheng13" in e["image"] or "menezesreis20" in e["image"]]
    scores = evaluate(REAL, entries, tmp_path / "out")
    assert scores["zheng", "body"]["dice"] > 0.91
    assert scores["menezesreis", "disc"]["dice"] > 0.88
    assert scores["all", "all"]["identified"] == 1.0
    for mask in ("zheng/zheng13_T2w", "menezesreis/menezesreis20_T2w"):  # nobody labelled S1 there, or L5/S1 in the first
        values = np.asarray(nib.load(tmp_path / "out" / f"{mask}_seg.nii.gz").dataobj)
        voxels = {s.name: int((values == s.verse).sum()) for s in label_table()}
        assert 0.6 < voxels["S1"] / voxels["L5"] < 1.2
        assert 0.5 < voxels["L5/S1"] / voxels["L4/L5"] < 1.2
