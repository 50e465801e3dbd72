"""Clip gradients: an almost empty patch blows them up (instance norm divides by its standard deviation), and so can bfloat16."""

from __future__ import annotations

import logging

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch.nn.utils import clip_grad_norm_

logger = logging.getLogger(__name__)


class ClipGradients:
    """Clip the norm of the gradients before the optimizer uses them. If it is not finite, the step leaves the weights unchanged.

    Args:
        network: network whose gradients are clipped.
        max_norm: largest Euclidean norm of all gradients together.
    """

    def __init__(self, network: torch.nn.Module, max_norm: float) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.clip)

    def clip(self) -> None:
        norm = clip_grad_norm_(self.network.parameters(), self.max_norm)
        if not torch.isfinite(norm):
            logger.warning("gradients without a finite norm are left out of this step")
            for parameter in self.network.parameters():
                parameter.grad = None
