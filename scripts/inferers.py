"""Inferers: how the network is applied to a volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer

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

    def __call__(self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits of `inputs` (B1XYZ), float32."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp and has_bfloat16(inputs.device)):
            return self.inferer(inputs, network, *args, **kwargs).float()


def has_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 is computed by the hardware; elsewhere it is emulated, and far slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
