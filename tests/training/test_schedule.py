"""A resumed run has the learning rate of its present options."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events

from scripts.training.checkpoint import ResumableCheckpoint
from scripts.training.schedule import ResumableLambdaLR


def rates(folder, epochs: int, resume: bool = False, lr: float = 0.1, weight_decay: float = 0.0) -> list[float]:
    """Learning rate of every epoch of a run whose rate falls linearly to 0 over its epochs."""
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = ResumableLambdaLR(optimizer, lambda epoch: 1 - epoch % epochs / epochs)
    trainer, seen = Engine(lambda engine, batch: optimizer.step()), []
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: seen.append(optimizer.param_groups[0]["lr"]))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: schedule.step())
    save_dict = {"model": network, "optimizer": optimizer, "lr_scheduler": schedule}
    ResumableCheckpoint(str(folder / "last.pt"), save_dict, resume=resume).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    assert optimizer.param_groups[0]["weight_decay"] == weight_decay
    assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]]
    return seen


def test_more_epochs_go_on_with_the_longer_schedule(tmp_path):
    assert rates(tmp_path, 2) == pytest.approx([0.1, 0.05])
    assert rates(tmp_path, 4, resume=True) == pytest.approx([0.05, 0.025])  # not 0.1, where the shorter schedule began anew


def test_options_of_the_call_count(tmp_path):
    rates(tmp_path, 2, weight_decay=0.1)
    assert rates(tmp_path, 4, resume=True, lr=0.2, weight_decay=0.5) == pytest.approx([0.1, 0.05])
