"""Random training samples: a fine patch and a whole coarse view of one scan, each drawn through one random affine map."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable
from monai.transforms.utils import create_rotate
from torch.nn.functional import avg_pool3d, grid_sample, pad

from scripts.common.errors import CallError
from scripts.data.complete_labels import STRUCTURES_END

BEND_LENGTH = (200.0, 400.0)  # voxels of the scan, of a whole wave: a lumbar spine is some 200 mm long
CANDIDATES = 4096  # voxels among which a labelled one is looked for; about 3 % of a scan are labelled


class RandSpineSamplesd(Randomizable, MapTransform):
    """`image`, `label` -> a patch under the same names and a view under `view`, `view_label`.

    Rotation, scaling and left-right flip are applied while the voxels are drawn, so that nothing but the sample is interpolated and no
    corner of a patch is empty where the scan goes on. Interpolation blurs, and a scan to be segmented is not interpolated: a share of
    the patches is therefore taken voxel by voxel, flipped at most.

    Args:
        keys: image and label, shape 1XYZ, on the grid of the fine network.
        patch_size: voxels of the patch.
        view_size: voxels of the view.
        view_voxel: size of a voxel of the view in voxels of the scan.
        rotate: largest rotation of a patch about each axis, radians.
        scale: largest relative change of a patch's size along each axis.
        view_rotate, view_scale: the same of a view, which is turned and scaled in the same direction.
        flip_prob: probability of a left-right flip.
        bend: largest amplitude of a wave from left to right along the spine, voxels of the scan, in the view alone: scoliosis moves
            vertebrae out of the line that tells their level.
        cut: largest share of the scan that a view may lack at its upper end, and at its lower one; each end is cut in
            half of the views. Where the scan ends must not tell the level.
        exact_prob: probability that a patch is neither rotated nor scaled, with its voxels on those of the scan.
        spine_prob: probability that the patch is centred near a labelled voxel; else it lies anywhere in the scan.
        jitter: largest distance of a patch from that voxel, share of its size.
        samples: what to draw, "image" for patches, "view" for views; the other costs no time then, and is not in the result.
    """

    def __init__(
        self,
        keys: Sequence[str],
        patch_size: Sequence[int],
        view_size: Sequence[int],
        view_voxel: Sequence[int],
        rotate: float = 0.35,
        scale: float = 0.1,
        view_rotate: float = 0.25,
        view_scale: float = 0.25,
        flip_prob: float = 0.5,
        bend: float = 35.0,
        cut: float = 0.3,
        exact_prob: float = 0.6,
        spine_prob: float = 0.9,
        jitter: float = 0.2,
        samples: Sequence[str] = ("image", "view"),
    ) -> None:
        MapTransform.__init__(self, keys)
        self.patch_size, self.view_size, self.view_voxel = (np.array(n) for n in (patch_size, view_size, view_voxel))
        self.patch_change, self.view_change = (rotate, scale), (view_rotate, view_scale)
        self.flip_prob, self.bend, self.cut = flip_prob, bend, cut
        self.exact_prob, self.spine_prob, self.jitter, self.samples = exact_prob, spine_prob, jitter, samples

    def randomize(self, label: torch.Tensor) -> None:
        """Draw the affine maps and the centres of both samples, all in voxels of the scan."""
        r, size = self.R, np.array(label.shape[1:])
        angles, growth = r.uniform(-1, 1, (2, 3))
        flip = np.array([-1 if r.rand() < self.flip_prob else 1, 1, 1])
        self.patch_matrix, self.view_matrix = (
            create_rotate(3, rotate * angles)[:3, :3] @ np.diag(1 + scale * growth) * flip
            for rotate, scale in (self.patch_change, self.view_change)
        )
        self.patch_centre = r.uniform(0, 1, 3) * (size - 1)
        if r.rand() < self.spine_prob:
            candidates = r.randint(0, size, (CANDIDATES, 3))  # a list of all labelled voxels would take longer than the sample
            values = label[0].numpy()[tuple(candidates.T)]
            labelled = np.flatnonzero((values > 0) & (values < STRUCTURES_END))
            if len(labelled):
                self.patch_centre = candidates[labelled[0]] + r.uniform(-self.jitter, self.jitter, 3) * self.patch_size
        if r.rand() < self.exact_prob:
            self.patch_matrix = np.diag(flip).astype(float)
            self.patch_centre = np.floor(self.patch_centre) + (self.patch_size - 1) / 2 % 1  # between two voxels if the size is even
        place = r.uniform(-1, 1, 3)
        self.wave = r.uniform(-self.bend, self.bend), 2 * np.pi / r.uniform(*BEND_LENGTH), r.uniform(0, 2 * np.pi)
        cut = np.maximum(0, r.uniform(-self.cut, self.cut, 2)) * size[2]
        self.seen = int(cut[0]), int(np.ceil(size[2] - cut[1]))
        size[2] = self.seen[1] - self.seen[0]
        # where the view is smaller than the scan it may lie anywhere in it, else the scan anywhere in the view
        self.view_centre = (size - 1) / 2 + place * np.abs(size - self.view_size * self.view_voxel) / 2

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        d = dict(data)
        image, label = (d[key].as_tensor() if hasattr(d[key], "as_tensor") else d[key] for key in self.keys)
        self.randomize(label)
        if "view" in self.samples:
            seen_image, seen_label = (v[..., self.seen[0] : self.seen[1]] for v in (image, label))
            d["view"] = self._draw_view(seen_image)
            d["view_label"] = draw(seen_label, self.view_centre, self.view_matrix * self.view_voxel, self.view_size, "nearest", self.wave)
        for key, volume, mode in zip(self.keys, (image, label), ("bilinear", "nearest")):
            if "image" in self.samples:
                d[key] = draw(volume, self.patch_centre, self.patch_matrix, self.patch_size, mode)
            else:
                del d[key]
        return d

    def _draw_view(self, image: torch.Tensor) -> torch.Tensor:
        """The view, sampled from the image averaged over half coarse voxels: midway between two of them lies the mean of a whole one.

        Elsewhere, and for an odd size of voxels, it is a weighted mean of about as many voxels.
        """
        half = np.minimum(-(-self.view_voxel // 2), image.shape[1:])  # rounded up; of a single slice, that
        averaged = avg_pool3d(image[None].float(), half.tolist(), ceil_mode=True, count_include_pad=False)[0]
        centre = (self.view_centre - (half - 1) / 2) / half
        amplitude, frequency, phase = self.wave
        wave = amplitude / half[0], frequency * half[2], phase
        return draw(averaged, centre, self.view_matrix * self.view_voxel / half[:, None], self.view_size, "bilinear", wave)


def samples_of(train_only: str) -> list[str]:
    """What a training of `both` networks, of the `outlines` or of the `levels` alone draws: patches (`image`), views (`view`).

    Raises:
        CallError: for anything else.
    """
    samples = {"both": ["image", "view"], "outlines": ["image"], "levels": ["view"]}
    if train_only not in samples:
        raise CallError(f"--train_only {train_only}: choose both, outlines or levels")
    return samples[train_only]


def draw(
    volume: torch.Tensor, centre: np.ndarray, matrix: np.ndarray, size: np.ndarray, mode: str, wave: Sequence[float] = (0.0, 0.0, 0.0)
) -> torch.Tensor:
    """Sample of `size` voxels whose index steps are the columns of `matrix`, around `centre`; zeros outside. Shape 1XYZ, float32.

    A sample whose voxels are those of the volume, flipped at most, is cut out instead of interpolated.

    `wave` shifts the layers of the sample's last axis along the first axis of the volume: amplitude in voxels, radians per voxel,
    and the phase at the centre, which stays where it is.
    """
    amplitude, frequency, phase = wave
    first = centre - matrix @ ((size - 1) / 2)
    if not amplitude and np.array_equal(np.abs(matrix), np.eye(3)) and np.array_equal(first, np.round(first)):
        return _cut_out(volume, first.astype(int), np.diag(matrix).astype(int), size)
    corners = np.stack(np.meshgrid(*[(-n / 2, n / 2) for n in size], indexing="ij"), -1).reshape(-1, 3) @ matrix.T + centre
    reach = np.array([2 * abs(amplitude), 0, 0])
    low = np.clip(np.floor(corners.min(0) - reach) - 1, 0, np.array(volume.shape[1:]) - 1).astype(int)
    high = np.clip(np.ceil(corners.max(0) + reach) + 2, low + 1, volume.shape[1:]).astype(int)
    source = volume[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]].float()
    # grid_sample: -1 and 1 at the outer faces of the volume, whose last axis comes first
    extent = np.array(source.shape[1:])
    origin, step = (torch.as_tensor(v, dtype=torch.float32) for v in (2 * (first - low + 0.5) / extent - 1, 2 * matrix / extent[:, None]))
    i, j, k = (torch.arange(n, dtype=torch.float32) for n in size)
    places = [origin[a] + step[a, 0] * i[:, None, None] + step[a, 1] * j[:, None] + step[a, 2] * k for a in (2, 1, 0)]
    grid = torch.stack(places).permute(1, 2, 3, 0)
    if amplitude:
        along = (np.arange(size[2]) - (size[2] - 1) / 2) * np.linalg.norm(matrix[:, 2])
        shift = amplitude * (np.sin(frequency * along + phase) - np.sin(phase))
        grid[..., 2] += torch.as_tensor(2 * shift / extent[0], dtype=torch.float32)
    return grid_sample(source[None], grid[None], mode=mode, padding_mode="zeros", align_corners=False)[0]


def _cut_out(volume: torch.Tensor, first: np.ndarray, step: np.ndarray, size: np.ndarray) -> torch.Tensor:
    """The voxels of `volume` from index `first` on, in steps of 1 or -1, with zeros outside. Shape 1XYZ, float32."""
    low = np.minimum(first, first + step * (size - 1))
    missing = [n for start, n, extent in zip(low, size, volume.shape[1:]) for n in (start + n - extent, -start)]  # negative: cut off
    return pad(volume, missing[::-1]).flip([1 + int(axis) for axis in np.flatnonzero(step < 0)]).float()
