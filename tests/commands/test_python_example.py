"""The Python example of docs/clients.md gives the mask that inference writes."""

from __future__ import annotations

import json
import re

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from conftest import BUNDLE, INFERENCE

from scripts.phantoms.phantom import write_cohort


@pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").exists(), reason="no weights are shipped")
def test_python_example(tmp_path, monkeypatch):
    write_cohort(tmp_path, training=0, validation=1, testing=0, seed=11, workers=1, contrast="T2w")
    (scan,) = (tmp_path / "validation").glob("*_T2w.nii.gz")
    (example,) = re.findall(r"```python\n(import torch\n.*?)```", (BUNDLE / "docs" / "clients.md").read_text(encoding="utf-8"), re.DOTALL)
    example = example.replace("scan.nii.gz", str(scan)).replace(
        "\nnetwork", f"\nconfig['output_dir'] = {str(tmp_path / 'example')!r}\nnetwork", 1
    )
    monkeypatch.chdir(BUNDLE)
    names: dict = {}
    exec(example, names)
    options = {"image": str(scan), "output_dir": str(tmp_path / "out"), "label_scheme": "channel"}
    monai.bundle.run(config_file=INFERENCE, bundle_root=str(BUNDLE), **options)
    written = nib.load(tmp_path / "out" / f"{scan.name.removesuffix('.nii.gz')}_seg.nii.gz")
    np.testing.assert_array_equal(names["mask"][0].numpy(), np.asarray(written.dataobj))
    np.testing.assert_allclose(names["mask"].affine.numpy(), written.affine, atol=1e-4)
    assert names["report"]["uncertain"] is False
    report = json.loads((tmp_path / "out" / f"{scan.name.removesuffix('.nii.gz')}_seg.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in names["report"]["structures"]] == [row["name"] for row in report["structures"]]
    assert names["report"]["spine"] == report["spine"]
