"""What ends a training, in one line: a loss that is no number, memory that is not enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from scripts.common.errors import UserError
from scripts.data.dataset import CarriedError

CPU_MEMORY = ("can't allocate memory", "not enough memory")  # PyTorch has an exception of its own for GPUs only


class FiniteLoss:
    """Stop before a loss that is not a finite number reaches the weights.

    Args:
        checkpoint: file with the last good state, for the message.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = Path(checkpoint)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check)

    def check(self, engine: Engine) -> None:
        """
        Raises:
            UserError: with the files of the batch, from its item `scan`.
        """
        loss, state = engine.state.output["loss"], engine.state
        if not torch.isfinite(loss):
            kept = f"{self.checkpoint} keeps the state before it." if self.checkpoint.is_file() else "Nothing was saved yet."
            raise UserError(
                f"the loss is {loss.item()} in epoch {state.epoch}, step {state.iteration}, on {', '.join(state.batch['scan'])}. {kept} "
                "Look at these scans with `explore`, or lower --learning_rate."
            )


class ErrorAdvice:
    """Say which knob to turn where memory runs out, what became of a process that reads scans, and what it found wrong with one of them;
    every other error goes on its way.

    Args:
        knobs: what lowers the need for memory, the best first: name and present value.
    """

    def __init__(self, knobs: Mapping[str, Any]) -> None:
        self.knobs = dict(knobs)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.explain)

    def explain(self, engine: Engine, error: BaseException) -> None:
        """
        Raises:
            UserError: if memory was not enough, a process that reads scans was ended, or it met a scan that cannot be used.
        """
        if isinstance(error, CarriedError):
            raise UserError(str(error)) from error
        text = str(error)
        knobs = ", then ".join(f"--{name} (now {value})" for name, value in self.knobs.items())
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in text for words in CPU_MEMORY):
            raise UserError(f"out of memory on {engine.state.device}: lower {knobs}") from error
        if "DataLoader worker" in text and "killed by signal: Killed" in text:
            raise UserError(
                "a process that reads scans was killed, mostly for lack of memory: lower --num_workers or --cache_rate"
            ) from error
        if "DataLoader worker" in text and "killed by signal: Terminated" in text:
            raise UserError("a process that reads scans was ended by SIGTERM; --resume goes on from the last epoch") from error
        raise error
