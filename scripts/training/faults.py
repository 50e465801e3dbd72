"""End a training with one line of advice: for a loss that is not finite, for lack of memory, for a scan that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from scripts.common.errors import UserError
from scripts.data.dataset import CarriedError

CPU_MEMORY = ("can't allocate memory", "not enough memory")  # phrases of PyTorch, which has an exception of its own only for GPUs


class FiniteLoss:
    """Stop before a loss that is not finite reaches the weights.

    Args:
        checkpoint: file with the last good state, for the message.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = Path(checkpoint)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check)

    def check(self, engine: Engine) -> None:
        """Refuse a loss that is not finite.

        Raises:
            UserError: naming the files of the batch, from its item `scan`.
        """
        loss, state = engine.state.output["loss"], engine.state
        if not torch.isfinite(loss):
            kept = f"{self.checkpoint} keeps the state before it." if self.checkpoint.is_file() else "Nothing was saved yet."
            raise UserError(
                f"the loss is {loss.item()} in epoch {state.epoch}, step {state.iteration}, on {', '.join(state.batch['scan'])}. {kept} "
                "Look at these scans with `explore`, or lower --learning_rate."
            )


class ErrorAdvice:
    """Turn errors with a known remedy into one line that names it.

    These are lack of memory, the end of a worker process, and a scan that a worker process could not use; other errors are raised as
    they are.

    Args:
        knobs: names and present values of the options that lower the need for memory, the best first.
    """

    def __init__(self, knobs: Mapping[str, Any]) -> None:
        self.knobs = dict(knobs)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.explain)

    def explain(self, engine: Engine, error: BaseException) -> None:
        """Raise the error with advice, if there is any.

        Raises:
            UserError: if memory ran out, a process that reads scans was ended, or it met a scan that cannot be used.
        """
        if isinstance(error, CarriedError):
            raise UserError(str(error)) from error
        text = str(error)
        knobs = ", then ".join(f"--{name} (now {value})" for name, value in self.knobs.items())
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in text for words in CPU_MEMORY):
            raise UserError(f"out of memory on {engine.state.device}: lower {knobs}") from error
        if "DataLoader worker" in text and "killed by signal: Killed" in text:
            raise UserError(
                "a process that reads scans was killed, most likely for lack of memory: lower --num_workers or --cache_rate"
            ) from error
        if "DataLoader worker" in text and "killed by signal: Terminated" in text:
            raise UserError("a process that reads scans was ended by SIGTERM; --resume continues from the last epoch") from error
        raise error
