"""Inferers: how the network is applied to a volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from scipy import ndimage
from torch.nn.functional import embedding_bag

from scripts.common.preflight import is_true
from scripts.levels.instances import grown

ENDS = ((0.0, 0.2), (0.1, 0.0))  # shares of a scan at its lower and upper end that the further views for the levels lack
LEAST_SLICES = 60  # coarse voxels from end to end, 240 mm, that such a view must have
MAX_BOX_VOXELS = 12_000_000  # of the working grid; a whole spine with its margin has 9 million, and the logits of 12 million take 1.2 GB


class AutocastInferer(Inferer):
    """Run another inferer in bfloat16 where that is faster, and return float32.

    It sits here, not in the engine, because MONAI's engines autocast on CUDA only, and because every client of the bundle goes
    through the inferer.

    Args:
        inferer: the inferer that does the work.
        amp: False keeps float32; True uses bfloat16 where `has_bfloat16`.
    """

    def __init__(self, inferer: Inferer, amp: bool = True) -> None:
        super().__init__()
        self.inferer = inferer
        self.amp = is_true(amp, "amp")

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """What the inferer returns for `inputs` (B1XYZ), one tensor or several, as float32."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp and has_bfloat16(inputs.device)):
            result = self.inferer(inputs, network, *args, **kwargs)
        return tuple(r.float() for r in result) if isinstance(result, tuple) else result.float()


class CoarseToFineInferer(Inferer):
    """Find the spine on the whole view, then draw it with a sliding window over the box around it: what `SpineNet.forward` does, faster.

    Args:
        roi_size: voxels of a window; the same as in training, because instance norm looks at the whole window.
        sw_batch_size: windows per forward pass.
        overlap: share of a window that its neighbour covers too.
        margin: voxels between the spine that the coarse network sees and the side of the box.
        tta: test-time augmentation of the levels: the mean log-probabilities of the whole scan and of views that lack an end of it.
    """

    def __init__(
        self, roi_size: Sequence[int], sw_batch_size: int = 1, overlap: float = 0.25, margin: int = 12, tta: bool | str = False
    ) -> None:
        super().__init__()
        self.tta = is_true(tta, "tta")
        self.window = SlidingWindowInferer(roi_size, sw_batch_size, overlap, mode="gaussian")
        self.margin = margin

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Level logits (1CXYZ) of `inputs` (11XYZ): of the box alone, with its affine, if the input is a MetaTensor, else of all of it.

        What the coarse network sees far from the spine is left out where the box would be larger than any spine.

        Raises:
            ValueError: for more than one scan at a time, whose boxes would differ, or for a spine that fills more than memory can hold.
        """
        if len(inputs) != 1:
            raise ValueError(f"one scan at a time, got a batch of {len(inputs)}: set the batch size to 1")
        network = getattr(network, "module", network)
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        levels = self._locate(image, network)
        voxel = network.coarse_voxel
        seen = levels.argmax(1)[0] > 0
        if not seen.any():
            size = (1, 1, 1) if isinstance(inputs, MetaTensor) else image.shape[2:]
            empty = background_logits(levels.new_zeros(*levels.shape[:2], *size))
            return MetaTensor(empty, affine=inputs.affine) if isinstance(inputs, MetaTensor) else empty
        coarse_box = self._box(seen, voxel)
        if _voxels(coarse_box, voxel) > MAX_BOX_VOXELS:
            coarse_box = self._box(largest_cluster(seen), voxel)
        if (size := _voxels(coarse_box, voxel)) > MAX_BOX_VOXELS:
            raise ValueError(f"the coarse network sees a spine in a box of {size / 1e6:.0f} million voxels: no lumbar spine is so large")
        box = tuple(slice(s.start * v, s.stop * v) for s, v in zip(coarse_box, voxel))
        kinds = self.window(image[..., box[0], box[1], box[2]], self._delineate, network)
        logits = combine_near(network, levels[..., coarse_box[0], coarse_box[1], coarse_box[2]], kinds)
        if isinstance(inputs, MetaTensor):
            shift = torch.eye(4, dtype=inputs.affine.dtype)
            shift[:3, 3] = torch.tensor([s.start for s in box], dtype=shift.dtype)
            return MetaTensor(logits, affine=inputs.affine @ shift)
        whole = background_logits(logits.new_zeros(*logits.shape[:2], *image.shape[2:]))
        whole[..., box[0], box[1], box[2]] = logits
        return whole

    def _locate(self, image: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Level logits of the image on the coarse grid; a short scan is seen as a whole only."""
        levels = network.locate(image)
        if not self.tta:
            return levels
        step, slices = network.coarse_voxel[2], levels.shape[-1]
        total, views = levels.log_softmax(1), levels.new_ones(slices)
        for lower, upper in ENDS:
            seen = slice(int(lower * slices), slices - int(upper * slices))
            if seen.stop - seen.start < LEAST_SLICES:
                continue
            total[..., seen] += network.locate(image[..., seen.start * step : seen.stop * step]).log_softmax(1)
            views[seen] += 1
        return total / views

    def _delineate(self, windows: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Kind logits of a batch of windows; what is left over, a single one, goes through twice on a CPU.

        PyTorch leaves float32 convolutions of one small 3-D sample to a slow path there: one window takes 0.15 s, two take 0.09 s.
        """
        if len(windows) == 1 < self.window.sw_batch_size and not windows.is_cuda:
            return network.delineate(windows.expand(2, -1, -1, -1, -1).contiguous())[:1]
        return network.delineate(windows)

    def _box(self, seen: torch.Tensor, voxel: Sequence[int]) -> tuple[slice, ...]:
        """Box of coarse voxels around what is seen, with the margin."""
        where = seen.nonzero()
        margin = [math.ceil(self.margin / v) for v in voxel]
        low = [max(0, int(n) - m) for n, m in zip(where.amin(0), margin)]
        high = [min(int(n) + 1 + m, end) for n, m, end in zip(where.amax(0), margin, seen.shape)]
        return tuple(slice(a, b) for a, b in zip(low, high))


def _voxels(coarse_box: Sequence[slice], voxel: Sequence[int]) -> int:
    return math.prod((s.stop - s.start) * v for s, v in zip(coarse_box, voxel))


def largest_cluster(seen: torch.Tensor) -> torch.Tensor:
    """The largest piece of a boolean map (XYZ); pieces a voxel apart are one, as the vertebrae of a spine are."""
    mask = seen.cpu().numpy()
    pieces, count = ndimage.label(ndimage.binary_dilation(mask))
    sizes = ndimage.sum_labels(mask, pieces, range(1, count + 1))
    return torch.from_numpy(mask & (pieces == 1 + sizes.argmax()))


def combine_near(network: torch.nn.Module, levels: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """`network.combine` (1CXYZ) where a body or a disc may be, and one voxel around; elsewhere `background_logits`.

    A kind of less than 1/C of the probability of the background stays behind it, whichever level gets it.

    Args:
        network: a `SpineNet`.
        levels: level logits on the coarse grid, 1CXYZ.
        kinds: kind logits, 13XYZ.
    """
    logits = background_logits(levels.new_empty(*levels.shape[:2], *kinds.shape[2:], dtype=torch.float32))
    ahead = kinds[0, 1:].amax(0) > kinds[0, 0] - math.log(levels.shape[1])
    near = torch.from_numpy(grown(ahead.cpu().numpy())).to(kinds.device).flatten().nonzero()[:, 0]
    if not len(near):
        return logits
    # trilinear interpolation as a sum of eight rows of a table: a twentieth of the time that it takes for all channels of all voxels
    table = network.gated(levels)[0]
    rows, weights = near.new_zeros(1, 1), torch.ones(1, 1, device=near.device)
    for place, voxel, size in zip(torch.unravel_index(near, kinds.shape[2:]), network.coarse_voxel, table.shape[1:]):
        at = ((place + 0.5) / voxel - 0.5).clamp(0, size - 1)
        low = at.floor()
        pair = torch.stack([low, (low + 1).clamp(max=size - 1)], 1).long()
        share = torch.stack([1 - (at - low), at - low], 1)
        rows = (rows[:, :, None] * size + pair[:, None]).flatten(1)
        weights = (weights[:, :, None] * share[:, None]).flatten(1)
    gated = embedding_bag(rows, table.flatten(1).T.contiguous(), per_sample_weights=weights, mode="sum")
    logits.flatten(2)[0][:, near] = network.divide(gated.T.contiguous()[None], kinds.flatten(2)[:, :, near])[0]
    return logits


def background_logits(like: torch.Tensor) -> torch.Tensor:
    """Logits of the shape of `like` (BCXYZ) that say background everywhere."""
    logits = torch.full_like(like, -20.0)
    logits[:, 0] = 0
    return logits


def has_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 is faster than float32: on GPUs that compute in it, on processors with tiles for it (AMX) and on those of AMD.

    AVX512-BF16 alone does not tell: with it a convolution of 32 channels does 390 GFLOPs/s instead of 190 on an AMD EPYC, which
    alone has SSE4a, and 200 instead of 300 on an Intel Xeon without AMX.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(has.get("amx_bf16") or (has.get("avx512_bf16") and has.get("sse4a")))
