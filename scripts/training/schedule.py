"""Schedule the learning rate of a run that is resumed with other options than those it began with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim.lr_scheduler import LambdaLR


class ResumableLambdaLR(LambdaLR):
    """`LambdaLR` that follows the present options, not those of the run so far, from the first step of a resumed run on.

    PyTorch's `LambdaLR` keeps the old base rates, and the optimizer keeps the rate that the old schedule set last.
    """

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the epoch alone. The optimizer must be loaded before."""
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas):
            group["initial_lr"], group["lr"] = base, base * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
