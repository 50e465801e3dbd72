"""MONAI Deploy: the bundle's folder in `MonaiBundleInferenceOperator`, between its DICOM reader and its DICOM writer."""

from __future__ import annotations

import os
import subprocess

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from conftest import BUNDLE, INFERENCE

VENV = BUNDLE / ".venv-deploy"
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


def test_operator(small_scan, expected, tmp_path):
    """The operator itself, in an environment of its own; the folder it is called from is not the bundle."""
    assert VENV.exists(), "no .venv-deploy; make it with: bash tests/clients/setup_deploy.sh"
    script = BUNDLE / "tests" / "clients" / "deploy_operator.py"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [VENV / "bin" / "python", script, BUNDLE, small_scan, tmp_path / "mask.npy"],
        cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    mask = np.load(tmp_path / "mask.npy")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, np.swapaxes(expected, 0, 2))  # DHW
    assert [p.name for p in tmp_path.iterdir()] == ["mask.npy"]
