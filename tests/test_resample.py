"""Interpolation along the axes: hand-computed values, and what MONAI samples on oblique, anisotropic grids."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd

from scripts import resample
from scripts.resample import resample_axes
from scripts.transforms import KeysOnlySpacingd


def test_values_by_hand():
    volume = torch.tensor([0.0, 10.0, 30.0]).reshape(1, 3, 1, 1)
    assert resample_axes(volume, (0.5, 1, 1), (6, 1, 1)).ravel().tolist() == [0, 5, 10, 20, 30, 30]  # the last value is repeated
    assert resample_axes(volume, (2, 1, 1), (2, 1, 1)).ravel().tolist() == [0, 30]
    single = torch.full((1, 1, 1, 1), 7.0)
    assert resample_axes(single, (0.2, 1, 1), (3, 1, 1)).ravel().tolist() == [7, 7, 7]


@pytest.mark.parametrize("chunk", [2**22, 50])
@pytest.mark.parametrize(
    ("spacing", "shape"), [((0.7, 1.3, 4.2), (15, 20, 9)), ((1.0, 1.0, 1.0), (5, 6, 7)), ((4.0, 0.8, 0.8), (1, 30, 30))]
)
def test_it_is_what_monai_samples(spacing, shape, chunk, monkeypatch):
    monkeypatch.setattr(resample, "CHUNK_VOXELS", chunk)
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag(spacing)
    affine[:3, 3] = (3, 4, 5)
    data = torch.from_numpy(np.random.default_rng(0).random((1, *shape), dtype=np.float32))
    kept = data.clone()
    image = MetaTensor(data, affine=torch.from_numpy(affine), meta={"filename_or_obj": "a.nii"})
    options = {"keys": "image", "pixdim": (1.0, 1.0, 1.0), "mode": ["bilinear"]}
    ours, theirs = (kind(**options)({"image": image})["image"] for kind in (KeysOnlySpacingd, Spacingd))
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor(), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.affine, theirs.affine, atol=1e-9, rtol=0)
    assert ours.meta["filename_or_obj"] == "a.nii"
    assert torch.equal(data, kept)
