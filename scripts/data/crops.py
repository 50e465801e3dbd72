"""Draw random training samples: a fine patch and a whole coarse view of one scan, each through one random affine map."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable
from monai.transforms.utils import create_rotate
from torch.nn.functional import avg_pool3d

from scripts.common.errors import CallError
from scripts.data.complete_labels import STRUCTURES_END
from scripts.data.resampling import sample_affine

BEND_LENGTH = (200.0, 400.0)  # voxels of the scan, length of a whole wave: a lumbar spine is some 200 mm long
CANDIDATES = 4096  # random voxels to find a labelled one in; about 3 % of a scan are labelled


class RandSpineSamplesd(Randomizable, MapTransform):
    """Draw a patch of `image` and `label` under the same keys, and a view under `view` and `view_label`.

    Rotation, scaling and left-right flip are applied while the voxels are drawn, so that only the sample is interpolated and no corner of
    a patch is empty where the scan goes on. Interpolation blurs, and a scan to be segmented is not interpolated like that, so a share
    of the patches is taken voxel by voxel, at most flipped.

    Args:
        keys: image and label, shape 1XYZ, on the grid of the fine network.
        patch_size: voxels of the patch.
        view_size: voxels of the view.
        view_voxel: size of a voxel of the view in voxels of the scan.
        rotate: largest rotation of a patch about each axis, radians.
        scale: largest relative change of a patch's size along each axis.
        view_rotate, view_scale: the same for the view, which is turned and scaled in the same direction.
        flip_prob: probability of a left-right flip.
        bend: largest amplitude of a wave from left to right along the spine, voxels of the scan, only in the view: like scoliosis, it
            moves vertebrae out of the line that tells their level.
        cut: largest share of the scan that a view may lack at its upper and at its lower end; each end is cut in half of the views, so
            that the end of the scan does not tell the level.
        exact_prob: probability that a patch is neither rotated nor scaled, so that its voxels are voxels of the scan.
        spine_prob: probability that the patch is centred near a labelled voxel; otherwise it lies anywhere in the scan.
        jitter: largest distance of the centre of a patch from that voxel, share of its size.
        samples: samples to draw, "image" for patches and "view" for views; others take no time and are left out of the result.
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
            candidates = r.randint(0, size, (CANDIDATES, 3))  # listing all labelled voxels would take longer than the sample
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
        # along each axis, the smaller of scan and view may lie anywhere in the larger one
        self.view_centre = (size - 1) / 2 + place * np.abs(size - self.view_size * self.view_voxel) / 2

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        d = dict(data)
        image, label = (d[key].as_tensor() if hasattr(d[key], "as_tensor") else d[key] for key in self.keys)
        self.randomize(label)
        if "view" in self.samples:
            seen_image, seen_label = (v[..., self.seen[0] : self.seen[1]] for v in (image, label))
            d["view"] = self._draw_view(seen_image)
            steps = self.view_matrix * self.view_voxel
            d["view_label"] = sample_affine(seen_label, self.view_centre, steps, self.view_size, "nearest", self.wave)
        for key, volume, mode in zip(self.keys, (image, label), ("bilinear", "nearest")):
            if "image" in self.samples:
                d[key] = sample_affine(volume, self.patch_centre, self.patch_matrix, self.patch_size, mode)
            else:
                del d[key]
        return d

    def _draw_view(self, image: torch.Tensor) -> torch.Tensor:
        """Sample the view from the image averaged over half coarse voxels.

        Midway between two of these lies the mean of a whole coarse voxel. Elsewhere, and for an odd size of coarse voxels, the value is a
        weighted mean of about as many voxels.
        """
        half = np.minimum(-(-self.view_voxel // 2), image.shape[1:])  # rounded up, but no larger than the image
        averaged = avg_pool3d(image[None].float(), half.tolist(), ceil_mode=True, count_include_pad=False)[0]
        centre = (self.view_centre - (half - 1) / 2) / half
        amplitude, frequency, phase = self.wave
        wave = amplitude / half[0], frequency * half[2], phase
        return sample_affine(averaged, centre, self.view_matrix * self.view_voxel / half[:, None], self.view_size, "bilinear", wave)


def samples_of(train_only: str) -> list[str]:
    """Return the samples for a training of `both` networks, the `outlines` or the `levels`: patches (`image`), views (`view`).

    Raises:
        CallError: if `train_only` is none of the three.
    """
    samples = {"both": ["image", "view"], "outlines": ["image"], "levels": ["view"]}
    if train_only not in samples:
        raise CallError(f"--train_only {train_only}: choose both, outlines or levels")
    return samples[train_only]
