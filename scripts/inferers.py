"""Inferers: how the network is applied to a volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer

from scripts.preflight import is_true


class AutocastInferer(Inferer):
    """Run another inferer in bfloat16 where the hardware has it, and return float32.

    It sits here, not in the engine, because MONAI's engines autocast on CUDA only, and because every client of the bundle goes
    through the inferer.

    Args:
        inferer: the inferer that does the work.
        amp: False keeps float32; True uses bfloat16 if the device computes in it natively.
    """

    def __init__(self, inferer: Inferer, amp: bool = True) -> None:
        super().__init__()
        self.inferer = inferer
        self.amp = is_true(amp)

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
    """

    def __init__(self, roi_size: Sequence[int], sw_batch_size: int = 1, overlap: float = 0.25, margin: int = 12) -> None:
        super().__init__()
        self.window = SlidingWindowInferer(roi_size, sw_batch_size, overlap, mode="gaussian")
        self.margin = margin

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Level logits (1CXYZ) of `inputs` (11XYZ): of the box alone, with its affine, if the input is a MetaTensor, else of all of it.

        Raises:
            ValueError: for more than one scan at a time, whose boxes would differ.
        """
        if len(inputs) != 1:
            raise ValueError(f"one scan at a time, got a batch of {len(inputs)}: set the batch size to 1")
        network = getattr(network, "module", network)
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        levels = network.locate(image)
        voxel = network.coarse_voxel
        seen = (levels.argmax(1)[0] > 0).nonzero()
        if not len(seen):
            size = (1, 1, 1) if isinstance(inputs, MetaTensor) else image.shape[2:]
            empty = background_logits(levels.new_zeros(*levels.shape[:2], *size))
            return MetaTensor(empty, affine=inputs.affine) if isinstance(inputs, MetaTensor) else empty
        margin = [math.ceil(self.margin / v) for v in voxel]
        low = [max(0, int(n) - m) for n, m in zip(seen.amin(0), margin)]
        high = [min(int(n) + 1 + m, end) for n, m, end in zip(seen.amax(0), margin, levels.shape[2:])]
        coarse_box = tuple(slice(a, b) for a, b in zip(low, high))
        box = tuple(slice(a * v, b * v) for a, b, v in zip(low, high, voxel))
        kinds = self.window(image[..., box[0], box[1], box[2]], network.delineate)
        logits = network.combine(levels[..., coarse_box[0], coarse_box[1], coarse_box[2]], kinds)
        if isinstance(inputs, MetaTensor):
            shift = torch.eye(4, dtype=inputs.affine.dtype)
            shift[:3, 3] = torch.tensor([s.start for s in box], dtype=shift.dtype)
            return MetaTensor(logits, affine=inputs.affine @ shift)
        whole = background_logits(logits.new_zeros(*logits.shape[:2], *image.shape[2:]))
        whole[..., box[0], box[1], box[2]] = logits
        return whole


def background_logits(like: torch.Tensor) -> torch.Tensor:
    """Logits of the shape of `like` (BCXYZ) that say background everywhere."""
    logits = torch.full_like(like, -20.0)
    logits[:, 0] = 0
    return logits


def has_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 is computed in hardware; elsewhere it is emulated and far slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
