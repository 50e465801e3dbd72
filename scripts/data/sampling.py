"""Draw random numbers that only depend on the seed and the place in the training, so that a run can go on at any step as if never stopped.

They are also the same for any number of worker processes.
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
    """An index for a dataset: a scan, and the seed of its random transforms."""

    index: int
    seed: int


class SeededSampler(DistributedSampler):
    """A sampler of every scan once an epoch, in random order and each with a seed; each of several processes takes its share.

    MONAI's engines set its epoch.

    Args:
        dataset: dataset of scans.
        seed: seed of the order and the transforms; kept in the checkpoint.
    """

    def __init__(self, dataset: Sized, seed: int) -> None:
        super().__init__(dataset, num_replicas=idist.get_world_size(), rank=idist.get_rank(), seed=seed)
        self.skip = 0  # samples to leave out at the start of the next epoch only

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
    """Seed Python, NumPy and PyTorch before every step, for randomness in a network (dropout).

    Args:
        sampler: sampler with the seed.
    """

    def __init__(self, sampler: SeededSampler) -> None:
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.seed)

    def seed(self, engine: Engine) -> None:
        manual_seed(mixed(self.sampler.seed, engine.state.iteration, self.sampler.rank))


def mixed(*numbers: int) -> int:
    """Mix several numbers to a 32-bit seed. Trailing zeros do not change it, so all calls for one purpose must give as many numbers."""
    return int(np.random.SeedSequence([n % 2**32 for n in numbers]).generate_state(1)[0])
