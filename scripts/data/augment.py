"""Change intensity, resolution and view at random, so that one network serves every contrast, slice thickness and field of view."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch.nn.functional import interpolate

QUANTILE_VOXELS = 100_000  # about so many give the quantiles; all voxels would take longer than the rest of the sample


class RandInvertIntensityd(RandomizableTransform, MapTransform):
    """Invert images scaled to [0, 1] with probability `prob`: dark CSF becomes bright, as between T1 and T2."""

    def __init__(self, keys: KeysCollection = "image", prob: float = 0.1, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        d = dict(data)
        self.randomize(None)
        if self._do_transform:
            for key in self.key_iterator(d):
                d[key] = 1 - d[key]
        return d


class RandIntensityMapd(RandomizableTransform, MapTransform):
    """Map the intensities [0, 1] to [0, 1] by a random piecewise linear function: tissues change their order, as between contrasts.

    All keys get the same map. Each value is drawn between the identity and a uniform number.

    Args:
        prob: probability of the change.
        knots: number of knots, at least 2.
        strength: largest share of the uniform numbers; the share is drawn between 0 and this.
        quantiles: put the knots at quantiles of each image instead of equal distances: most tissues are dark, and between knots at
            equal distances they would all get about the same value.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        prob: float = 0.2,
        knots: int = 6,
        strength: float = 0.7,
        quantiles: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.knots, self.strength, self.quantiles = knots, strength, quantiles

    def randomize(self, data: None = None) -> None:
        super().randomize(data)
        self.values = torch.tensor(self.R.uniform(0, 1, self.knots), dtype=torch.float32)
        self.share = float(self.R.uniform(0, self.strength))

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        d = dict(data)
        self.randomize()
        if self._do_transform:
            for key in self.key_iterator(d):
                image = d[key].contiguous()
                knots = torch.linspace(0, 1, self.knots)
                if self.quantiles:
                    some = image.flatten()[:: max(1, image.numel() // QUANTILE_VOXELS)]
                    knots = torch.quantile(some, knots) + 1e-4 * torch.arange(self.knots)  # no two knots may coincide
                values = torch.lerp(knots, self.values, self.share)
                above = torch.searchsorted(knots, image).clamp(1, self.knots - 1)
                along = ((image - knots[above - 1]) / (knots[above] - knots[above - 1])).clamp(0, 1)
                d[key] = torch.lerp(values[above - 1], values[above], along)
        return d


class RandBlankBordersd(RandomizableTransform, MapTransform):
    """Blank what lies beyond a random plane across one or two axes, as if the scan ended there: 0 in images, background in labels.

    Instance norm averages over a whole window. A network trained only on full windows loses vertebrae where a curved spine leaves a
    window half empty.

    Args:
        prob: probability of the change.
        share: largest share of an axis to blank; the same planes apply to all keys.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.3, share: float = 0.5, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.share = share

    def randomize(self, data: None = None) -> None:
        super().randomize(data)
        axes = self.R.permutation(3)[: self.R.randint(1, 3)]
        self.borders = [(int(axis), float(self.R.uniform(0, self.share)), bool(self.R.randint(2))) for axis in axes]

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        d = dict(data)
        self.randomize()
        if self._do_transform:
            for key in self.key_iterator(d):
                d[key] = d[key].clone()
                for axis, share, is_first in self.borders:
                    size = d[key].shape[1 + axis]
                    blank = int(share * size)
                    d[key].narrow(1 + axis, 0 if is_first else size - blank, blank).zero_()
        return d


class RandThickSlicesd(RandomizableTransform, MapTransform):
    """Average `thickness` voxels along one axis and interpolate back, to imitate a scan of thick slices.

    Args:
        prob: probability of the change.
        thickness: smallest and largest slice thickness in voxels; one value for all keys.
        axis_prob: probability of each of the three axes.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        prob: float = 0.3,
        thickness: Sequence[float] = (2.0, 5.0),
        axis_prob: Sequence[float] = (0.7, 0.15, 0.15),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.thickness, self.axis_prob = thickness, axis_prob

    def randomize(self, data: None = None) -> None:
        super().randomize(data)
        self.axis, self.voxels = self.R.choice(3, p=self.axis_prob), self.R.uniform(*self.thickness)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        d = dict(data)
        self.randomize()
        if self._do_transform:
            for key in self.key_iterator(d):
                d[key] = _thick(d[key], self.axis, self.voxels)
        return d


def _thick(image: torch.Tensor, axis: int, thickness: float) -> torch.Tensor:
    """Blur an image (1XYZ) as slices of `thickness` voxels along `axis` would, on its own grid."""
    size = list(image.shape[1:])
    slices = max(2, round(size[axis] / thickness))
    if slices >= size[axis]:
        return image
    few = [slices if i == axis else n for i, n in enumerate(size)]
    return interpolate(interpolate(image[None], few, mode="area"), size, mode="trilinear", align_corners=False)[0]
