"""Ctrl-C and SIGTERM as a wish to stop, which is heard at the next good moment."""

from __future__ import annotations

import os
import signal
from types import FrameType

from scripts.common.errors import UserError


class StoppedError(UserError):
    """The user or the system ended the run; exit code 130 after Ctrl-C, 143 after SIGTERM, as a shell counts them."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Interruption:
    """Notes the first Ctrl-C or SIGTERM; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None  # that asked to stop
        self.process = os.getpid()

    def listen(self) -> None:
        """Take over the signals of this process. Worker processes that are forked later then leave them to it too."""
        signal.signal(signal.SIGINT, self.note)
        signal.signal(signal.SIGTERM, self.note)

    def note(self, number: int, frame: FrameType | None = None) -> None:
        self.signal_number = self.signal_number or number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if os.getpid() == self.process:
            text = f"{signal.Signals(number).name}: stopping after this step, or the validation\n"
            os.write(2, text.encode())  # a signal may arrive within a print
