"""Checks before a run, and the config that the others share."""

from __future__ import annotations

import pytest
import torch
from conftest import BUNDLE, fails
from monai.bundle import ConfigParser

from scripts.common.errors import CallError
from scripts.common.inference_config import inference_config
from scripts.common.preflight import check_weights, is_true, load_weights


def test_check_weights(tmp_path):
    path = tmp_path / "model.pt"
    for missing in (path, tmp_path):  # a path without a file, and a folder
        with fails(f"{missing}: no weights there. Train some with configs/train.yaml, or set --ckpt_path to a model.pt."):
            check_weights(str(missing), "ckpt_path")
    torch.save({"weight": torch.zeros(2)}, path)
    check_weights(str(path), "ckpt_path")


@pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False), ("false", False), ("True", True)])
def test_is_true_reads_yaml_and_the_command_line(value, expected):
    assert is_true(value, "figures") is expected


def test_is_true_refuses_anything_else():
    with fails("--figures is 'no', neither True nor False"):
        is_true("no", "figures")


def test_inference_config_replaces_values():
    parser = inference_config(str(BUNDLE), spacing=[3.0, 1.5, 1.5], label_scheme="spider", keys=["image", "label"])
    assert isinstance(parser, ConfigParser)
    assert parser["spacing"] == [3.0, 1.5, 1.5]
    assert parser["label_scheme"] == "spider"
    assert inference_config(str(BUNDLE))["label_scheme"] == "verse"  # no override leaks
    assert inference_config(str(BUNDLE))["keys"] == ["image"]
    parser = inference_config(str(BUNDLE), keys=["image", "label"], modes=["bilinear", "nearest"], spacing=[3.0, 1.5, 1.5])
    spacing = next(t for t in parser.get_parsed_content("preprocessing").transforms if hasattr(t, "spacing_transform"))
    assert spacing.keys == ("image", "label")
    assert spacing.spacing_transform.pixdim.tolist() == [3.0, 1.5, 1.5]
    assert parser.get_parsed_content("inferer").inferer.roi_size == parser["patch_size"]


def test_inference_config_errors(tmp_path):
    with fails(f"{tmp_path}: no configs/inference.yaml there. Set --bundle_root to the bundle's folder."):
        inference_config(str(tmp_path))
    with fails("inference.yaml has no patchsize, spacings"):
        inference_config(str(BUNDLE), spacings=[1, 1, 1], patchsize=[8, 8, 8], amp=False)


@pytest.mark.parametrize("content", [b"hello, I am text", b"abc", b"", b"0" * 40])
def test_a_file_that_is_no_weights(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CallError, match=r"x\.pt: cannot be read as weights \(.*\)\. Copy or train it again\.$"):
        load_weights(tmp_path / "x.pt")
