"""What the numbers among the knobs of the configs may be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scripts.common.errors import CallError

PATCH_MULTIPLE = 16  # what the strides of both networks divide


class Limits(NamedTuple):
    """The least and the most that a number may be, and whether it must be a whole one."""

    least: float = 0
    most: float = math.inf
    whole: bool = False

    def __str__(self) -> str:
        span = f"of at least {self.least}" if self.most == math.inf else f"from {self.least} to {self.most}"
        return f"a {'whole ' * self.whole}number {span} is"

    def allow(self, value: Any) -> bool:
        return is_number(value, self.whole) and self.least <= value <= self.most


class Triple(NamedTuple):
    """Three numbers above 0, whole multiples of something if it is given."""

    multiple_of: int = 0

    def __str__(self) -> str:
        return f"three {f'multiples of {self.multiple_of}' if self.multiple_of else 'numbers above 0'} are"

    def allow(self, value: Any) -> bool:
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
            return False
        fits = all(is_number(v, whole=self.multiple_of > 0) and 0 < v < math.inf for v in value)
        return fits and (not self.multiple_of or all(v % self.multiple_of == 0 for v in value))


_LIMITS: dict[Limits | Triple, str] = {
    Triple(): "spacing",
    Triple(multiple_of=PATCH_MULTIPLE): "patch_size",
    Limits(1, whole=True): "epochs batch_size val_interval patience log_interval sw_batch_size workers repeats training_steps",
    Limits(0, whole=True): "margin seed tensorboard_cases training validation testing",
    Limits(0, 256, whole=True): "num_workers",
    Limits(2, whole=True): "folder_size",
    Limits(0, 6, whole=True): "lumbar",
    Limits(20, whole=True): "many_scans",
    Limits(0.001): "max_gradient",
    Limits(): "learning_rate weight_decay rotate view_rotate bend min_instance_mm3 min_speck_mm3",
    Limits(0, 1): "cache_rate spine_prob exact_prob flip_prob thick_prob blank_prob noise_prob intensity_prob contrast_prob"
    " invert_prob view_intensity_prob view_contrast_prob view_invert_prob anomalies validation_fraction testing_fraction",
    Limits(0, 0.9): "overlap scale view_scale",
    Limits(0, 0.45): "cut",
    Limits(0.01, 0.99): "threshold",
}
LIMITS = {name: limits for limits, names in _LIMITS.items() for name in names.split()}


def check_knobs(knobs: Mapping[str, Any]) -> None:
    """
    Args:
        knobs: settings by name, such as a whole config; those without limits, and expressions, are passed over.

    Raises:
        CallError: for a value that is not within its `LIMITS`, all such values.
    """
    wrong = [
        f"--{name} {value}: {LIMITS[name]} needed"
        for name, value in knobs.items()
        if name in LIMITS and not isinstance(value, Mapping) and not is_expression(value) and not LIMITS[name].allow(value)
    ]
    if wrong:
        raise CallError("; ".join(wrong))


def is_expression(value: Any) -> bool:
    """Whether MONAI evaluates a value of a config."""
    return str(value).startswith(("$", "@", "%"))


def is_number(value: Any, whole: bool = False) -> bool:
    """Whether a value is a number, or a whole number; True and False are none."""
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
