"""Stop a training early, without a circular reference to the trainer in the config and with a state that survives a resume."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine
from monai.handlers import EarlyStopHandler


class EarlyStop(EarlyStopHandler):
    """MONAI's `EarlyStopHandler`, for the evaluator, whose counter and best score can be saved and loaded."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self._handler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._handler.load_state_dict(state)


class StoppedBy:
    """A handler of the trainer that makes it the run which `early_stop`, a handler of the evaluator, ends."""

    def __init__(self, early_stop: EarlyStop) -> None:
        self.early_stop = early_stop

    def attach(self, engine: Engine) -> None:
        self.early_stop.set_trainer(engine)
