"""Randomness that depends on the seed and the place in the training alone: a run can go on at any step as if it had never stopped.

It is also the same for any number of worker processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import NamedTuple

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from ignite.utils import manual_seed
from torch.utils.data.distributed import DistributedSampler


class Draw(NamedTuple):
    """What a dataset is asked for: a scan, and the seed of its random transforms."""

    index: int
    seed: int


class SeededSampler(DistributedSampler):
    """Every scan of a dataset once an epoch in random order, with a seed for each; of several processes, each takes its share.

    MONAI's engines tell it the epoch.

    Args:
        dataset: of scans.
        seed: of the order and the transforms; kept in the checkpoint.
    """

    def __init__(self, dataset: Sized, seed: int) -> None:
        super().__init__(dataset, num_replicas=idist.get_world_size(), rank=idist.get_rank(), seed=seed)
        self.skip = 0  # samples left out at the start of the next epoch, and of no other

    def __iter__(self) -> Iterator[Draw]:
        skip, self.skip = self.skip, 0
        for place, index in enumerate(super().__iter__()):
            if place >= skip:
                yield Draw(index, mixed(self.seed, self.epoch, self.rank, place))

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed = state["seed"]


class SeededSteps:
    """Seed Python, NumPy and PyTorch before every step, for what is random in a network (dropout).

    Args:
        sampler: that has the seed.
    """

    def __init__(self, sampler: SeededSampler) -> None:
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.seed)

    def seed(self, engine: Engine) -> None:
        manual_seed(mixed(self.sampler.seed, engine.state.iteration, self.sampler.rank))


def mixed(*numbers: int) -> int:
    """A 32-bit seed from several numbers. Trailing zeros do not change it, so every call for one purpose must give as many numbers."""
    return int(np.random.SeedSequence([n % 2**32 for n in numbers]).generate_state(1)[0])
