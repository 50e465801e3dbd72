"""Early stopping that knows its trainer without a circular reference in the config, and survives a resume."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine
from monai.handlers import EarlyStopHandler


class EarlyStop(EarlyStopHandler):
    """MONAI's handler, for the evaluator, with its counter and best score as a state."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self._handler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._handler.load_state_dict(state)


class StoppedBy:
    """Attached to the trainer, it tells `early_stop`, which sits on the evaluator, which run to end."""

    def __init__(self, early_stop: EarlyStop) -> None:
        self.early_stop = early_stop

    def attach(self, engine: Engine) -> None:
        self.early_stop.set_trainer(engine)
