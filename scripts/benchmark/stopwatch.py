"""Clocks and memory of one process of the benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Seconds per named step. Time in a step that runs inside another step counts for the inner one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.first_ended = 0.0  # time.time() when the first step ended, 0 before that
        self._inside = [0.0]

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time that the `with` block takes to the step `name`."""
        self._inside.append(0.0)
        start = now()
        try:
            yield
        finally:
            took = now() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inside.pop()
            self._inside[-1] += took
            self.first_ended = self.first_ended or time.time()

    def timed(self, name: str, function: Callable) -> Callable:
        """Return `function` with every call counted as the step `name`."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.step(name):
                return function(*args, **kwargs)

        return measured


def now() -> float:
    """Return seconds on a clock that waits for the GPU, if there is one, to finish its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def gpu_memory() -> dict[str, float]:
    """Return `gpu_peak_mib`, the most memory that PyTorch has held on the GPU in this process; nothing without a GPU."""
    return {"gpu_peak_mib": torch.cuda.max_memory_reserved() / 2**20} if torch.cuda.is_available() else {}
