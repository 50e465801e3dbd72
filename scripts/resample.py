"""Linear interpolation along the axes of a volume, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample

CHUNK_VOXELS = 2**22  # interpolated at a time


def resample_axes(volume: torch.Tensor, steps: Sequence[float], shape: Sequence[int]) -> torch.Tensor:
    """Voxel i of the result lies at i x step of the input, along every axis; beyond the last voxel its value is repeated.

    What trilinear sampling gives, without a grid of coordinates, which takes more memory than the volume.

    Args:
        volume: shape CXYZ, floating point.
        steps: voxels of the input per voxel of the result.
        shape: XYZ of the result.
    """
    shrinking_first = sorted(range(3), key=lambda axis: shape[axis] / volume.shape[axis + 1])
    for axis in shrinking_first:
        volume = _resample_axis(volume, axis + 1, float(steps[axis]), int(shape[axis]))
    return volume


def _resample_axis(volume: torch.Tensor, axis: int, step: float, size: int) -> torch.Tensor:
    last = volume.shape[axis] - 1
    position = (torch.arange(size, dtype=torch.float64) * step).clamp(0, last)
    if size == last + 1 and torch.allclose(position, position.round(), rtol=0, atol=1e-6) and abs(step - 1) < 1e-6:
        return volume
    low = position.floor().long()
    high = (low + 1).clamp(max=last)
    share = (position - low).to(volume.dtype)
    shape = [*volume.shape]
    shape[axis] = size
    result = volume.new_empty(shape)
    step_out = max(1, CHUNK_VOXELS * size // max(1, result.numel()))
    for first in range(0, size, step_out):
        part = slice(first, first + step_out)
        weight = share[part].reshape([-1 if i == axis else 1 for i in range(volume.ndim)]).to(volume.device)
        start, end = (volume.index_select(axis, index[part].to(volume.device)) for index in (low, high))
        result.narrow(axis, first, len(low[part])).copy_(torch.lerp(start, end, weight))
    return result


class AxisResample(SpatialResample):
    """`SpatialResample` between grids whose axes point the same way and whose first voxels coincide, as in `Spacing`.

    MONAI samples in float64, through a grid of float64 coordinates: 40 bytes a voxel where this takes 4. Other modes than linear are
    left to MONAI.
    """

    def __call__(
        self, img: torch.Tensor, dst_affine: torch.Tensor, spatial_size: Sequence[int], mode: str | None = None, **kwargs: Any
    ) -> torch.Tensor:
        if (mode or self.mode) != "bilinear" or not isinstance(img, MetaTensor) or img.ndim != 4:
            return super().__call__(img, dst_affine=dst_affine, spatial_size=spatial_size, mode=mode, **kwargs)
        steps = (dst_affine[:3, :3].norm(dim=0) / img.affine[:3, :3].norm(dim=0)).tolist()
        result = resample_axes(img.as_tensor().float(), steps, spatial_size)
        result = MetaTensor(result, meta=img.meta, applied_operations=img.applied_operations)
        result.affine = dst_affine.to(img.affine.dtype)
        return result
