"""Inferers: how the network is applied to a volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing, compute_importance_map
from monai.inferers import Inferer
from scipy import ndimage

from scripts.levels.logits import COARSE_VOXEL, GATED, level_logits
from scripts.network import KINDS, unwrapped
from scripts.windows import Box, background_logits, box_around, draw_windows, scaled, spine_windows

ENDS = ((0.0, 0.2), (0.1, 0.0))  # share of the scan that each additional view leaves out at its lower and upper end
SHORTEST_VIEW_MM = 240.0  # a shorter view along the spine does more harm than good
MAX_BOX_MM3 = 12e6  # a whole spine with its margin takes 9 litres


class AutocastInferer(Inferer):
    """Inferer that runs another one in bfloat16 where that is faster, and returns float32.

    It sits here, not in the engine, because MONAI's engines autocast on CUDA only, and because every client of the bundle goes
    through the inferer.

    Args:
        inferer: the inferer that does the work.
        amp: False keeps float32; True uses bfloat16 where `has_bfloat16`.
    """

    def __init__(self, inferer: Inferer, amp: bool = True) -> None:
        super().__init__()
        self.inferer = inferer
        self.amp = amp

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return as float32 what the inferer returns for `inputs` (B1XYZ), one tensor or several."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp and has_bfloat16(inputs.device)):
            result = self.inferer(inputs, network, *args, **kwargs)
        return tuple(r.float() for r in result) if isinstance(result, tuple) else result.float()


class CoarseToFineInferer(Inferer):
    """Inferer that finds the spine on the whole view, then draws it with windows that follow it: `SpineNet.forward`, but faster.

    A `threshold` other than 0.5 shifts the logits of the background, and with them all later probabilities.

    Args:
        roi_size: voxels of a window; the same as in training, because instance norm looks at the whole window.
        sw_batch_size: windows per forward pass.
        overlap: share of a window that its neighbour covers too, at least.
        margin: voxels around the spine, as the coarse network sees it, that the windows cover too.
        tta: test-time augmentation of the levels: their log-probabilities are averaged over the whole scan and views that lack an end.
        threshold: probability, between 0 and 1, from which on a voxel is body or disc.

    Raises:
        ValueError: for a threshold of 0 or 1 and beyond, or an overlap of 1 and more.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        sw_batch_size: int = 1,
        overlap: float = 0.25,
        margin: int = 12,
        tta: bool = False,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap {overlap}: a number from 0 to less than 1 is needed")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold {threshold}: a number between 0 and 1 is needed")
        self.background_bonus = math.log(threshold / (1 - threshold))  # added to its logit: then argmax decides at the threshold
        self.tta = tta
        self.roi_size = [int(n) for n in roi_size]
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.margin = margin
        self.importance = compute_importance_map(self.roi_size, mode="gaussian", sigma_scale=0.125)

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the level logits (1CXYZ) of a plain tensor (11XYZ, voxels taken to be 1 mm), or a MetaTensor for `SpineLogits.of`.

        A MetaTensor gives the kind logits (13XYZ) of a box around the spine, with the affine of the box, and in the metadata the levels
        on the coarse grid: level logits of all voxels would take longer than the networks.

        Where the box would be larger than any spine, whatever the coarse network sees far from the spine is left out.

        Raises:
            ValueError: for more than one scan at a time, whose boxes would differ, or for a spine whose box is larger than any spine.
        """
        if len(inputs) != 1:
            raise ValueError(f"one scan at a time, got a batch of {len(inputs)}: set the batch size to 1")
        network = unwrapped(network)
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        voxel_mm = _voxel_mm(inputs)
        levels = self._locate(image, network, voxel_mm[2])
        coarse_box, box, kinds = self._draw(image, levels.argmax(1)[0] > 0, network, math.prod(voxel_mm))
        levels = levels[(..., *coarse_box)]
        meta = {GATED: network.gated(levels), COARSE_VOXEL: torch.tensor([network.coarse_voxel])}
        if isinstance(inputs, MetaTensor):
            shift = torch.eye(4, dtype=inputs.affine.dtype)
            shift[:3, 3] = torch.tensor([s.start for s in box], dtype=shift.dtype)
            return MetaTensor(kinds, affine=inputs.affine @ shift, meta=meta)
        whole = background_logits(image.new_zeros(*levels.shape[:2], *image.shape[2:], dtype=torch.float32))
        whole[(0, slice(None), *box)] = level_logits(MetaTensor(kinds[0], meta=meta)).to(whole.device)
        return whole

    def _locate(self, image: torch.Tensor, network: torch.nn.Module, layer_mm: float) -> torch.Tensor:
        """Return level logits on the coarse grid of an image whose layers along the spine are `layer_mm` apart.

        A short scan is seen as a whole only.
        """
        levels = network.locate(image).float()  # on CPUs autocast leaves log_softmax in bfloat16
        if not self.tta:
            return levels
        step, slices = network.coarse_voxel[2], levels.shape[-1]
        least = round(SHORTEST_VIEW_MM / (step * layer_mm))
        total, views = levels.log_softmax(1), levels.new_ones(slices)
        for lower, upper in ENDS:
            seen = slice(int(lower * slices), slices - int(upper * slices))
            if seen.stop - seen.start < least:
                continue
            total[..., seen] += network.locate(image[..., seen.start * step : seen.stop * step]).float().log_softmax(1)
            views[seen] += 1
        return total / views

    def _draw(self, image: torch.Tensor, seen: torch.Tensor, network: torch.nn.Module, voxel_mm3: float) -> tuple[Box, Box, torch.Tensor]:
        """Return the box around what the coarse network sees, in coarse and in fine voxels, and the kind logits in it (13XYZ)."""
        voxel, shape = network.coarse_voxel, image.shape[2:]
        if not seen.any():  # the next steps need a box: one voxel of background
            return (slice(0, 1),) * 3, (slice(0, 1),) * 3, background_logits(image.new_zeros(1, len(KINDS), 1, 1, 1))
        margin = [math.ceil(self.margin / v) for v in voxel]
        coarse_box = box_around(seen, margin)
        if _voxels(coarse_box, voxel) * voxel_mm3 > MAX_BOX_MM3:
            seen = largest_cluster(seen)
            coarse_box = box_around(seen, margin)
        if (size := _voxels(coarse_box, voxel) * voxel_mm3) > MAX_BOX_MM3:
            raise ValueError(f"the coarse network sees a spine in a box of {size / 1e6:.0f} litres: no lumbar spine is so large")
        box = tuple(slice(s.start, min(s.stop, n)) for s, n in zip(scaled(coarse_box, voxel), shape))
        windows = spine_windows(seen, voxel, margin, shape, self.roi_size, self.overlap)
        kinds = draw_windows(image, windows, box, partial(self._delineate, network=network), self.importance, self.sw_batch_size)
        kinds[:, 0] += self.background_bonus
        return coarse_box, box, kinds

    def _delineate(self, windows: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Return the kind logits of a batch of windows; on a CPU a single window left over goes through the network twice.

        PyTorch leaves float32 convolutions of one small 3-D sample to a slow path there: one window takes 0.15 s, two take 0.09 s.
        """
        if len(windows) == 1 < self.sw_batch_size and not windows.is_cuda:
            return network.delineate(windows.expand(2, -1, -1, -1, -1).contiguous())[:1]
        return network.delineate(windows)


def _voxel_mm(inputs: torch.Tensor) -> list[float]:
    """Return the edges of a voxel; 1 mm, those of the working grid, for a tensor without an affine."""
    if not isinstance(inputs, MetaTensor):
        return [1.0, 1.0, 1.0]
    return affine_to_spacing(inputs.affine.reshape(4, 4)).tolist()  # a collated batch has an affine with a batch axis


def _voxels(coarse_box: Box, voxel: Sequence[int]) -> int:
    return math.prod(s.stop - s.start for s in scaled(coarse_box, voxel))


def largest_cluster(seen: torch.Tensor) -> torch.Tensor:
    """Return the largest piece of a boolean map (XYZ); pieces at most two voxels apart, such as neighbouring vertebrae, are one."""
    mask = seen.cpu().numpy()
    pieces, count = ndimage.label(ndimage.binary_dilation(mask))
    sizes = ndimage.sum_labels(mask, pieces, range(1, count + 1))
    return torch.from_numpy(mask & (pieces == 1 + sizes.argmax()))


def has_bfloat16(device: torch.device) -> bool:
    """Return True where bfloat16 is faster than float32: GPUs that compute in it, processors with tiles for it (AMX), and AMD's.

    AVX512-BF16 alone does not tell: with it, a convolution of 32 channels runs at 390 GFLOPs/s instead of 190 on an AMD EPYC, but at 200
    instead of 300 on an Intel Xeon without AMX. Only AMD has SSE4a.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(has.get("amx_bf16") or (has.get("avx512_bf16") and has.get("sse4a")))
