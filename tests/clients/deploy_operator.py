"""Run MONAI Deploy's own operator on one scan; called by test_deploy.py with the Python of .venv-deploy.

python deploy_operator.py BUNDLE SCAN.nii.gz MASK.npy
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.deploy.core import AppContext, Fragment, Image, IOType
from monai.deploy.operators import IOMapping, MonaiBundleInferenceOperator


def deploy_image(path: Path) -> Image:
    """A scan as DICOMSeriesToVolumeOperator hands it on: an array DHW, and metadata with the affine but no name of the space."""
    scan = nib.load(path)
    names = ("row_pixel_spacing", "col_pixel_spacing", "depth_pixel_spacing")
    spacing = dict(zip(names, map(float, scan.header.get_zooms())))
    metadata = {**spacing, "nifti_affine_transform": scan.affine, "SeriesInstanceUID": "1.2.3"}
    return Image(np.swapaxes(np.asarray(scan.dataobj), 0, 2), metadata)


class Ports:
    """Stands for the ports between two operators.

    Args:
        image: what the operator receives.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        self.sent: dict[str, Image] = {}

    def receive(self, name: str) -> Image | None:
        return {"image": self.image}.get(name)

    def emit(self, value: Image, name: str) -> None:
        self.sent[name] = value


def main(bundle: Path, scan: Path, mask: Path) -> None:
    ports = Ports(deploy_image(scan))
    mapping = {key: [IOMapping(key, Image, IOType.IN_MEMORY)] for key in ("image", "pred")}
    operator = MonaiBundleInferenceOperator(
        Fragment(), app_context=AppContext({}), input_mapping=mapping["image"], output_mapping=mapping["pred"], bundle_path=bundle
    )
    operator.compute(ports, ports, None)
    np.save(mask, ports.sent["pred"].asnumpy())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
