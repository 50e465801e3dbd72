"""A column of boxes whose voxels vote as they are told."""

from __future__ import annotations

import numpy as np
import torch

from scripts.labels import label_table
from scripts.levels.name_levels import NEVER, NamedLevels

TABLE = label_table()
CHANNEL = {s.name: s.channel for s in TABLE}
SPACING = (2.0, 2.0, 2.0)
MIN_MM3 = 300.0
SHAPE = (16, 40, 96)
SIDE = (slice(3, 13), slice(12, 22))  # of a body and of a disc, 20 x 20 mm
BODY, DISC, PITCH = 9, 3, 12  # voxels along the spine: 18, 6 and 24 mm
OTHER = -50.0  # logit of a channel that has no probability at all
LUMBAR = ["L1", "L2", "L3", "L4", "L5", "S1"]
DISCS = ["L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"]


def body_box(place: float) -> tuple[slice, slice, slice]:
    """The body at that place from the top, 0 for the first."""
    top = SHAPE[2] - 6 - round(place * PITCH)
    return *SIDE, slice(top - BODY, top)


def disc_box(place: float) -> tuple[slice, slice, slice]:
    """The disc below that body."""
    top = body_box(place)[2].start
    return *SIDE, slice(top - DISC, top)


def paint(logits: torch.Tensor, box: tuple[slice, ...], **odds: float) -> None:
    """Give the voxels of a box these probabilities; names that are no keywords come as `**{"L1/L2": 1}`."""
    logits[(slice(None), *box)] = OTHER
    for name, p in odds.items():
        logits[(CHANNEL[name], *box)] = float(np.log(p))


def column(levels: list[str], discs: list[str], first_disc: int = 0) -> torch.Tensor:
    """Logits of bodies one below the other, with a disc under each from the body `first_disc` on; -1 is the disc above the top."""
    logits = torch.full((len(TABLE), *SHAPE), OTHER)
    logits[0] = 0
    for place, name in enumerate(levels):
        paint(logits, body_box(place), **{name: 1})
    for place, name in enumerate(discs, start=first_disc):
        paint(logits, disc_box(place), **{name: 1})
    return logits


def truth(levels: dict[float, str], discs: dict[float, str]) -> np.ndarray:
    label = np.zeros(SHAPE, np.int64)
    for place, name in levels.items():
        label[body_box(place)] = CHANNEL[name]
    for place, name in discs.items():
        label[disc_box(place)] = CHANNEL[name]
    return label


def dense(found: NamedLevels) -> torch.Tensor:
    """All of its logits, CXYZ."""
    logits = torch.full((len(TABLE), *found.channel_map.shape), NEVER)
    logits[0] = found.logits.background
    for channel, (box, values) in found.logits.boxes.items():
        logits[(channel, *box)] = values
    return logits


def row(report: dict, name: str) -> dict:
    (found,) = [r for r in report["structures"] if r["name"] == name]
    return found
