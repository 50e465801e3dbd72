"""The learning rate of a run that goes on with other options than those that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim.lr_scheduler import LambdaLR


class ResumableLambdaLR(LambdaLR):
    """`LambdaLR` whose rate is that of the present options from the first step of a resumed run on, not of those of the run so far.

    PyTorch's own keeps the old base rates, and the optimizer the rate that the end of the old schedule had set.
    """

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the epoch; load the optimizer before."""
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas):
            group["initial_lr"], group["lr"] = base, base * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
