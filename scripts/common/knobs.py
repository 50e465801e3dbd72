"""Limits of the numbers among the knobs of the configs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scripts.common.errors import CallError

PATCH_MULTIPLE = 16  # the strides of both networks divide it


class Limits(NamedTuple):
    """Range of a number, which may have to be a whole one."""

    least: float = 0
    most: float = math.inf
    whole: bool = False

    @property
    def demand(self) -> str:
        kind = "whole number" if self.whole else "number"
        span = f"of at least {self.least}" if self.most == math.inf else f"from {self.least} to {self.most}"
        return f"a {kind} {span} is needed"

    def allow(self, value: Any) -> bool:
        return is_number(value, self.whole) and self.least <= value <= self.most


class Triple(NamedTuple):
    """Three numbers above 0, or three multiples of a whole number if that is given."""

    multiple_of: int = 0

    @property
    def demand(self) -> str:
        what = f"multiples of {self.multiple_of}" if self.multiple_of else "numbers above 0"
        return f"three {what} are needed"

    def allow(self, value: Any) -> bool:
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
            return False
        fits = all(is_number(v, whole=self.multiple_of > 0) and 0 < v < math.inf for v in value)
        return fits and (not self.multiple_of or all(v % self.multiple_of == 0 for v in value))


COUNTS = ("epochs", "batch_size", "val_interval", "patience", "log_interval", "sw_batch_size", "workers", "repeats", "training_steps")
SHARES = (
    "cache_rate", "spine_prob", "exact_prob", "flip_prob", "thick_prob", "blank_prob", "noise_prob", "intensity_prob", "contrast_prob",
    "invert_prob", "view_intensity_prob", "view_contrast_prob", "view_invert_prob", "anomalies", "validation_fraction", "testing_fraction",
)  # fmt: skip
NOT_NEGATIVE = ("learning_rate", "weight_decay", "rotate", "view_rotate", "bend", "min_instance_mm3", "min_speck_mm3")
LIMITS: dict[str, Limits | Triple] = {
    "spacing": Triple(),
    "patch_size": Triple(multiple_of=PATCH_MULTIPLE),
    **dict.fromkeys(COUNTS, Limits(1, whole=True)),
    **dict.fromkeys(("margin", "seed", "tensorboard_cases", "training", "validation", "testing"), Limits(0, whole=True)),
    "num_workers": Limits(0, 256, whole=True),
    "folder_size": Limits(2, whole=True),
    "lumbar": Limits(0, 6, whole=True),
    "many_scans": Limits(20, whole=True),
    "max_gradient": Limits(0.001),
    **dict.fromkeys(NOT_NEGATIVE, Limits(0)),
    **dict.fromkeys(SHARES, Limits(0, 1)),
    **dict.fromkeys(("overlap", "scale", "view_scale"), Limits(0, 0.9)),
    "cut": Limits(0, 0.45),
    "threshold": Limits(0.01, 0.99),
}


def check_knobs(knobs: Mapping[str, Any]) -> None:
    """Refuse numbers that are beyond their `LIMITS`.

    Args:
        knobs: settings by name, such as a whole config; names without limits, and expressions, are passed over.

    Raises:
        CallError: naming every such value.
    """
    wrong = [
        f"--{name} {value}: {LIMITS[name].demand}"
        for name, value in knobs.items()
        if name in LIMITS and not isinstance(value, Mapping) and not is_expression(value) and not LIMITS[name].allow(value)
    ]
    if wrong:
        raise CallError("; ".join(wrong))


def is_expression(value: Any) -> bool:
    """Return True if MONAI would evaluate this value of a config."""
    return str(value).startswith(("$", "@", "%"))


def is_number(value: Any, whole: bool = False) -> bool:
    """Return True for a number, with `whole` for a whole number; True and False count as neither."""
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
