"""train.yaml serves its weights under MONAI Label; the server itself is started by tests/clients/test_monai_label.py."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from conftest import BUNDLE, SMALL, TRAIN
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from scripts.common.errors import UserError
from scripts.data.dataset import CachedScans
from scripts.training.served import ServeBest, is_served
from scripts.transforms import EncodeLabelsd, KeysOnlySpacingd


def test_served_is_only_the_bundle_in_the_folder_of_the_app(monkeypatch, tmp_path):
    monkeypatch.delenv("MONAI_LABEL_APP_DIR", raising=False)
    assert not is_served(tmp_path / "app" / "model" / "bundle")
    monkeypatch.setenv("MONAI_LABEL_APP_DIR", str(tmp_path / "app"))
    assert is_served(tmp_path / "app" / "model" / "bundle")
    assert not is_served(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    assert not is_served(".")


def test_served_training_reads_channels_and_follows_the_epochs_of_the_request(monkeypatch):
    for app, scheme in ((BUNDLE.parent, "channel"), (BUNDLE / "elsewhere", "verse")):
        monkeypatch.setenv("MONAI_LABEL_APP_DIR", str(app))
        parser = ConfigParser(ConfigParser.load_config_file(TRAIN))
        parser.update({**SMALL, "train#trainer#max_epochs": 10, "optimizer": "$torch.optim.SGD([torch.zeros(1)], lr=1.0)"})
        assert parser.get_parsed_content("read_scheme") == scheme
        factor = parser.get_parsed_content("lr_scheduler").lr_lambdas[0]
        assert [factor(0), factor(5), factor(9), factor(10)] == pytest.approx([1, 0.5**0.9, 0.1**0.9, 1])  # anew with the next run


def test_label_files_with_channels():
    label = MetaTensor(torch.tensor([[[[0, 6, 18, 23]]]], dtype=torch.uint8))
    encoded = EncodeLabelsd(label_scheme="channel")({"label": label})
    np.testing.assert_array_equal(encoded["label"].numpy().ravel(), [0, 6, 18, 23])
    assert np.flatnonzero(encoded["labelled"]).tolist() == [0, 6, 18, 23]
    with pytest.raises(UserError, match="label scheme 'channels' does not exist"):
        EncodeLabelsd(label_scheme="channels")


def test_better_weights_are_copied_and_worse_ones_left(tmp_path):
    source, target = tmp_path / "out" / "model.pt", tmp_path / "models" / "model.pt"
    evaluator = Engine(lambda engine, batch: None)
    ServeBest(str(source), str(target)).attach(evaluator)
    evaluator.run([0])
    assert not target.exists()  # no weights yet
    source.parent.mkdir()
    source.write_text("first")
    evaluator.run([0])
    assert target.read_text() == "first"
    target.write_text("changed by somebody")
    evaluator.run([0])
    assert target.read_text() == "changed by somebody"  # the saver wrote nothing since
    source.write_text("better")
    os.utime(source, ns=(0, source.stat().st_mtime_ns + 1))
    evaluator.run([0])
    assert target.read_text() == "better"


def test_a_split_without_scans_is_one_line():
    with pytest.raises(UserError, match="no scans: a training needs one at least to train on, and one to validate on"):
        CachedScans([], transform=None)


def test_spacing_leaves_other_items_alone():
    image = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.eye(4), meta={"filename_or_obj": "a.nii.gz"})
    data = {"image": image, "image_path": "a.nii.gz", "other": 1}
    done = KeysOnlySpacingd("image", pixdim=(2.0, 1.0, 1.0))(data)
    assert done["image"].shape == (1, 2, 4, 4)
    assert done["image"].pixdim.tolist() == [2, 1, 1]
    assert (done["image_path"], done["other"]) == ("a.nii.gz", 1)
