"""The order of the scans and the seeds of their transforms depend on nothing but the seed and the place in the training."""

from __future__ import annotations

import random

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.transforms import Compose, Randomizable, Transform

from scripts.data.dataset import CachedScans
from scripts.data.sampling import Draw, SeededSampler, SeededSteps, mixed


class Noise(Randomizable, Transform):
    """Adds a random number to the name of a scan."""

    def __call__(self, data: dict) -> dict:
        return {"value": torch.tensor(data["name"] + self.R.uniform(0, 0.5))}


def epochs(workers: int = 0, seed: int = 3, first: int = 1, skip: int = 0) -> list[list[float]]:
    """Collect the batches of a loader of five scans in epochs `first` to 3."""
    dataset = CachedScans([{"name": i} for i in range(5)], Compose([Noise()]), progress=False)
    sampler = SeededSampler(dataset, seed)
    sampler.skip = skip
    loader = DataLoader(dataset, batch_size=1, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    values = []
    for epoch in range(first, 4):
        sampler.set_epoch(epoch)
        values.append([batch["value"].item() for batch in loader])
    return values


def test_every_scan_once_an_epoch_in_another_order_and_with_other_noise():
    first, second, third = epochs()
    assert [sorted(map(int, e)) for e in (first, second, third)] == [[0, 1, 2, 3, 4]] * 3
    assert list(map(int, first)) != list(map(int, second))
    assert len({*first, *second, *third}) == 15
    assert epochs(seed=4)[0] != first


def test_the_same_from_any_step_and_with_any_number_of_workers():
    whole = epochs()
    assert epochs() == whole
    assert epochs(workers=2) == whole
    assert epochs(first=2, skip=3) == [whole[1][3:], whole[2]]  # of one epoch only


def test_processes_share_the_scans(monkeypatch):
    draws = []
    for rank in range(2):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(idist, "get_world_size", lambda: 2)
        draws.append(list(SeededSampler(range(5), 0)))
    assert [len(d) for d in draws] == [3, 3]  # one scan twice, as every process takes as many steps
    assert {d.index for part in draws for d in part} == set(range(5))
    assert len({d.seed for part in draws for d in part}) == 6


def test_the_seed_is_that_of_the_checkpoint():
    sampler = SeededSampler(range(5), 0)
    sampler.load_state_dict(SeededSampler(range(5), 7).state_dict())
    assert list(sampler) == list(SeededSampler(range(5), 7)) != list(SeededSampler(range(5), 0))
    assert isinstance(next(iter(sampler)), Draw)


def test_steps_are_seeded():
    drawn: list[tuple[float, float, float]] = []
    engine = Engine(lambda engine, batch: drawn.append((random.random(), np.random.rand(), torch.rand(1).item())))
    SeededSteps(SeededSampler([0, 0], 5)).attach(engine)
    engine.run([0, 0], max_epochs=2)
    assert len({value for step in drawn for value in step}) == 12
    engine.add_event_handler(Events.STARTED, lambda: engine.load_state_dict({"iteration": 2, "max_epochs": 2, "epoch_length": 2}))
    again = drawn[2:]
    drawn.clear()
    torch.manual_seed(99)
    engine.run([0, 0], max_epochs=2)
    assert drawn == again


def test_mixed_seeds():
    seeds = {mixed(*numbers) for numbers in ((0, 1), (1, 0), (0, 0, 1), (-1, 2))}
    assert len(seeds) == 4
    assert all(0 <= s < 2**32 for s in seeds)
    assert mixed(0, 5) == mixed(0, 5, 0) != mixed(0, 5, 1)  # what the checkpoints of earlier runs go on with
