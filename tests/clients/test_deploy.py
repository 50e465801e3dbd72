"""MONAI Deploy: the bundle's folder in `MonaiBundleInferenceOperator`, between its DICOM reader and its DICOM writer.

The operator itself runs where monai-deploy-app-sdk and Holoscan are installed (Linux with a CUDA runtime; PLACEHOLDER).
Everywhere, `compute` below takes from the bundle what the operator of version 4.0.0 takes, in its order, and does with it what it does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, INFERENCE
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from monai.utils import convert_to_dst_type, ensure_tuple, first

from scripts.labels import label_table

pytestmark = [pytest.mark.clients, pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").exists(), reason="no weights are shipped")]


@pytest.fixture(scope="module")
def expected(small_scan, tmp_path_factory) -> np.ndarray:
    """Channels that inference.yaml writes for the scan, XYZ."""
    folder = tmp_path_factory.mktemp("expected")
    options = {"image": str(small_scan), "output_dir": str(folder), "label_scheme": "channel", "figures": False, "num_workers": 0}
    monai.bundle.run(config_file=INFERENCE, bundle_root=str(BUNDLE), **options)
    mask = np.asarray(nib.load(next(folder.glob("*_seg.nii.gz"))).dataobj)
    assert len(np.unique(mask)) > 3
    return mask


def deploy_image(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """A scan as DICOMSeriesToVolumeOperator hands it on: an array DHW, and metadata with the affine but no name of the space."""
    scan = nib.load(path)
    spacing = [float(z) for z in scan.header.get_zooms()]
    names = ("row_pixel_spacing", "col_pixel_spacing", "depth_pixel_spacing")
    metadata = {**dict(zip(names, spacing)), "nifti_affine_transform": scan.affine, "SeriesInstanceUID": "1.2.3"}
    return np.swapaxes(np.asarray(scan.dataobj), 0, 2), metadata


def compute(bundle: Path, image: np.ndarray, metadata: dict[str, Any]) -> tuple[np.ndarray, dict]:
    """`MonaiBundleInferenceOperator.compute` with a folder for a bundle: its ids and its calls.

    Args:
        bundle: folder; `bundle_root` of its configs stays as it is.
        image: DHW.
        metadata: of a DICOM series.

    Returns:
        The array of the output `Image`, DHW and 8-bit, and its metadata.
    """
    # _init_config
    if str(bundle) not in sys.path:
        sys.path.insert(0, str(bundle))
    parser = ConfigParser()
    parser.read_meta(f=json.loads((bundle / "configs" / "metadata.json").read_text()))
    parser.read_config([next(p for p in (bundle / "configs" / f"inference{s}" for s in (".json", ".yaml")) if p.exists())])
    parser.parse()
    device = parser.get_parsed_content("device")
    inferer = parser.get_parsed_content("inferer")
    inputs, outputs = (parser["_meta_"]["network_data_format"][key] for key in ("inputs", "outputs"))
    assert [inputs["image"]["type"], outputs["pred"]["type"]] == ["image", "image"]  # what makes it expect and send an Image
    composes = {}
    for name in ("preprocessing", "postprocessing"):
        compose = parser.get_parsed_content(name)
        compose.transforms = tuple(t for t in compose.transforms if not any(n in type(t).__name__ for n in ("LoadImage", "SaveImage")))
        assert isinstance(compose, Compose)
        assert isinstance(first(compose.transforms), MapTransform)
        composes[name] = compose
    # _load_model_from_directory_bundle
    network = parser.get_parsed_content("network")
    network.load_state_dict(torch.load(str(bundle / "models" / "model.pt"), map_location=device), strict=True)
    network.eval()
    # _convert_from_image_dicom_source
    value = np.swapaxes(image, 0, 2)
    meta = {
        **metadata,
        "spacing": np.asarray([metadata[f"{n}_pixel_spacing"] for n in ("row", "col", "depth")]),
        "original_affine": np.asarray(metadata["nifti_affine_transform"]),
        "affine": np.asarray(metadata["nifti_affine_transform"]).copy(),
        "spatial_shape": np.asarray(value.shape),
        "original_channel_dim": "no_channel",
    }
    # compute
    with torch.no_grad():
        value = convert_to_dst_type(value, dst=value)[0]
        data = composes["preprocessing"]({"image": MetaTensor.ensure_torch_and_prune_meta(value, meta)})
        kept = data["image"]
        predicted = inferer(inputs=data.pop("image")[None].to(device), network=network)
        data["image"] = kept
        result = composes["postprocessing"]({"pred": ensure_tuple(predicted)[0], **data})["pred"]
    # _send_output
    return np.swapaxes(np.squeeze(result.cpu().numpy(), 0), 0, 2).astype(np.uint8), kept.meta


def test_ids_and_calls_of_the_operator(small_scan, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # bundle_root is "." there, whatever that is
    mask, metadata = compute(BUNDLE, *deploy_image(small_scan))
    np.testing.assert_array_equal(mask, np.swapaxes(expected, 0, 2))
    assert {"row_pixel_spacing", "nifti_affine_transform", "SeriesInstanceUID"} <= {*metadata}  # what the DICOM writer looks at
    assert not list(tmp_path.iterdir())


def test_operator(small_scan, expected, tmp_path, monkeypatch):
    pytest.importorskip("holoscan", exc_type=ImportError)
    from monai.deploy.core import AppContext, Fragment, Image, IOType
    from monai.deploy.operators import IOMapping, MonaiBundleInferenceOperator

    class Port:
        """Stands for the ports between two operators."""

        def receive(self, name: str) -> Image:
            assert name == "image"
            return Image(*deploy_image(small_scan))

        def get(self, name: str) -> None:
            return None

        def emit(self, value: Image, name: str) -> None:
            sent[name] = value

    sent: dict[str, Image] = {}
    monkeypatch.chdir(tmp_path)
    mapping = {key: [IOMapping(key, Image, IOType.IN_MEMORY)] for key in ("image", "pred")}
    operator = MonaiBundleInferenceOperator(
        Fragment(), app_context=AppContext({}), input_mapping=mapping["image"], output_mapping=mapping["pred"], bundle_path=BUNDLE
    )
    operator.compute(Port(), Port(), None)
    np.testing.assert_array_equal(sent["pred"].asnumpy(), np.swapaxes(expected, 0, 2))
    assert sent["pred"].asnumpy().max() < len(label_table())
