"""Note Ctrl-C and SIGTERM, so that a training can stop at the next good moment."""

from __future__ import annotations

import os
import signal
from types import FrameType

from scripts.common.errors import UserError


class StoppedError(UserError):
    """The user or the system ended the run; the exit code is 130 after Ctrl-C and 143 after SIGTERM, as in a shell."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Interruption:
    """A note of the first Ctrl-C or SIGTERM; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None  # the signal that asked to stop
        self.process = os.getpid()

    def listen(self) -> None:
        """Handle the signals of this process; worker processes that are forked later inherit the handler and do not stop by themselves."""
        signal.signal(signal.SIGINT, self.note)
        signal.signal(signal.SIGTERM, self.note)

    def note(self, number: int, frame: FrameType | None = None) -> None:
        self.signal_number = self.signal_number or number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if os.getpid() == self.process:
            text = f"{signal.Signals(number).name}: stopping after this step, or the validation\n"
            os.write(2, text.encode())  # a signal may arrive within a print
