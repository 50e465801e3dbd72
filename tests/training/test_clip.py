"""Gradients are clipped before the optimizer uses them, and a broken one is left out."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.engines import IterationEvents

from scripts.training.clip import ClipGradients


@pytest.mark.parametrize(("gradient", "expected"), [([3.0, 4.0], [1.2, 1.6]), ([0.3, 0.4], [0.3, 0.4]), ([1.0, float("nan")], None)])
def test_clip(gradient, expected):
    network = torch.nn.Linear(2, 1, bias=False)
    engine = Engine(lambda engine, batch: engine.fire_event(IterationEvents.BACKWARD_COMPLETED))
    engine.register_events(*IterationEvents)
    ClipGradients(network, max_norm=2.0).attach(engine)
    network.weight.grad = torch.tensor([gradient])
    engine.run([0])
    if expected is None:
        assert network.weight.grad is None
    else:
        torch.testing.assert_close(network.weight.grad, torch.tensor([expected]), rtol=1e-4, atol=0)
