"""Training labels that lack S1 get it, from the shipped weights; nothing else changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, TOOLS, fails

from scripts.common.errors import CallError, ScanError
from scripts.common.inference_config import inference_config
from scripts.data.own_masks import check_replaceable
from scripts.labels import decode, encode
from scripts.phantoms.phantom import write_cohort
from scripts.tools.label_sacrum import label_sacrum

WEIGHTS = BUNDLE / "models" / "model.pt"
S1 = 26


@pytest.fixture(scope="module")
def without_s1(tmp_path_factory) -> Path:
    """Write two training scans and one for validation; the first lacks S1 and the discs in its label."""
    folder = tmp_path_factory.mktemp("without_s1")
    write_cohort(
        folder,
        training=2,
        validation=1,
        testing=0,
        seed=11,
        workers=1,
        contrast="T2w",
        view="L4",
        shape=(13, 140, 180),
        spacing_mm=(1.0, 4.0),
    )
    splits = json.loads((folder / "datalist.json").read_text())
    first = splits["training"][0]
    shutil.copy(folder / first["label"], folder / "truth.nii.gz")
    label = nib.load(folder / first["label"])
    values = np.asarray(label.dataobj)
    assert (values == S1).sum() > 1000
    nib.save(nib.Nifti1Image(np.where((values == S1) | (values > 100), 0, values).astype(np.uint8), label.affine), folder / first["label"])
    first["labelled"] = [v for v in first["labelled"] if v < S1]
    (folder / "datalist.json").write_text(json.dumps(splits))
    return folder


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no weights are shipped")
def test_labels_of_spider_become_those_of_verse(without_s1, tmp_path):
    splits = json.loads((without_s1 / "datalist.json").read_text())
    entry = {key: value for key, value in splits["training"][0].items() if key != "label_scheme"}
    label = nib.load(without_s1 / entry["label"])
    channels = encode(np.asarray(label.dataobj), "label", "verse")
    nib.save(nib.Nifti1Image(decode(channels, "spider").astype(np.uint8), label.affine), tmp_path / "spider_seg.nii.gz")
    entry |= {"image": str(without_s1 / entry["image"]), "label": str(tmp_path / "spider_seg.nii.gz")}
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry], "validation": [entry]}))
    inference = inference_config(str(BUNDLE), keys=["image", "label"], modes=["bilinear", "nearest"], device=torch.device("cpu"))
    written = label_sacrum(without_s1, tmp_path / "out", tmp_path / "list.json", inference, WEIGHTS, True, read_scheme="spider")
    new = json.loads(written.read_text())
    assert new["training"][0]["label_scheme"] == "verse"
    assert new["validation"][0]["label_scheme"] == "spider"  # that label stays as it is
    added = np.asarray(nib.load(new["training"][0]["label"]).dataobj)
    assert (added == S1).sum() > 1000
    np.testing.assert_array_equal(np.where(added == S1, 0, added), np.asarray(label.dataobj))


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no weights are shipped")
def test_s1_is_added_where_it_lacks(without_s1, tmp_path, capfd):
    before = {p: p.read_bytes() for p in without_s1.rglob("*") if p.is_file()}
    monai.bundle.run("label_sacrum", config_file=TOOLS, bundle_root=str(BUNDLE), dataset_dir=str(without_s1), sacrum_dir=str(tmp_path))
    assert capfd.readouterr().out.splitlines()[-1] == f"{tmp_path}/datalist.json: S1 added to 1 of 2 training scans"
    assert {p: p.read_bytes() for p in without_s1.rglob("*") if p.is_file()} == before

    old = json.loads((without_s1 / "datalist.json").read_text())
    new = json.loads((tmp_path / "datalist.json").read_text())
    first = new["training"][0]
    assert first["labelled"] == [*old["training"][0]["labelled"], S1]
    for split, number in (("training", 1), ("validation", 0)):
        paths = {key: str(without_s1 / old[split][number][key]) for key in ("image", "label")}
        assert new[split][number] == {**old[split][number], **paths}

    given, added = nib.load(without_s1 / old["training"][0]["label"]), nib.load(first["label"])
    assert np.allclose(added.affine, given.affine, atol=1e-4)
    with pytest.raises(ScanError, match="not as this bundle has written it"):  # as a label, which a segmentation may not replace
        check_replaceable(Path(first["label"]), first["image"])
    given, added, truth = (np.asarray(v.dataobj) for v in (given, added, nib.load(without_s1 / "truth.nii.gz")))
    assert (added[added != S1] == given[added != S1]).all()
    assert (given[added == S1] == 0).all()
    s1, s1_truth = added == S1, truth == S1
    assert 2 * (s1 & s1_truth).sum() / (s1.sum() + s1_truth.sum()) > 0.85


def test_the_labels_themselves_are_not_written_over(without_s1):
    with fails(f"{without_s1}: is the dataset's own folder, where labels would be replaced; set --sacrum_dir to another folder"):
        label_sacrum(without_s1, without_s1, "", inference_config(str(BUNDLE)), WEIGHTS)


def test_weights_of_another_network(without_s1, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    out = tmp_path / "out"
    with pytest.raises(CallError, match=r"a\.pt: weights of another network"):
        label_sacrum(without_s1, out, "", inference_config(str(BUNDLE), device=torch.device("cpu")), tmp_path / "a.pt")
    assert not out.exists()


def test_what_an_earlier_call_has_written_stays(without_s1, tmp_path):
    (tmp_path / "datalist.json").write_text("{}")
    with fails(f"{tmp_path}/datalist.json: exists already; set --overwrite True to replace it and the labels beside it"):
        label_sacrum(without_s1, tmp_path, "", inference_config(str(BUNDLE)), WEIGHTS)
    (tmp_path / "datalist.json").unlink()
    label = tmp_path / "training" / "phantom_0001_T2w_seg.nii.gz"
    label.parent.mkdir()
    label.write_text("mine")
    with fails(f"{label}: exists already; set --overwrite True to replace it, or --sacrum_dir to another folder"):
        label_sacrum(without_s1, tmp_path, "", inference_config(str(BUNDLE)), tmp_path / "before_the_weights_are_read.pt")
    assert label.read_text() == "mine"
    link = tmp_path / "link"
    link.symlink_to(without_s1)
    with fails(f"{link}: is the dataset's own folder, where labels would be replaced; set --sacrum_dir to another folder"):
        label_sacrum(without_s1, link, "", inference_config(str(BUNDLE)), WEIGHTS, overwrite=True)
