"""Score the weights at the end of a training, whatever the interval of its validations."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.engines import Evaluator


class FinalValidation:
    """Validate after the last epoch of a training, if the interval of `ValidationHandler` does not.

    Args:
        validator: evaluator, with the saver of the best model among its handlers.
        interval: epochs between validations.
    """

    def __init__(self, validator: Evaluator, interval: int) -> None:
        self.validator = validator
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.validate)  # before the checkpoint is written, so that it holds the result

    def validate(self, engine: Engine) -> None:
        if engine.state.epoch == engine.state.max_epochs and engine.state.epoch % self.interval:
            self.validator.run(engine.state.epoch)
