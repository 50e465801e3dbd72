"""The label table of `configs/metadata.json` and its numbering schemes.

The network, the post-processing and every array inside the bundle use the *channel index*. Files use one of the schemes below,
and are converted when they are read or written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from scripts.errors import UserError

METADATA_FILE = Path(__file__).resolve().parents[1] / "configs" / "metadata.json"
SCHEMES = ("verse", "channel", "spider", "totalspineseg")


@dataclass(frozen=True)
class Structure:
    """One row of the label table."""

    channel: int  # class index of the network
    name: str  # "L1", or "L1/L2" for the disc below L1
    verse: int  # T1..T12 = 8..19, L1..L6 = 20..25, S1 = 26; the disc below vertebra v is 100 + v
    totalspineseg: int
    spider: int | None  # counted from L5 = 1 upwards, discs from L5/S1 = 201; None: not part of that scheme

    @property
    def is_disc(self) -> bool:
        return "/" in self.name

    @property
    def group(self) -> str:
        """`body` or `disc`; `background` for channel 0."""
        return "background" if self.channel == 0 else "disc" if self.is_disc else "body"


@cache
def label_table() -> tuple[Structure, ...]:
    """All structures in channel order, background first."""
    rows = json.loads(METADATA_FILE.read_text())["labels"]
    table = tuple(Structure(**row) for row in rows)
    if [s.channel for s in table] != list(range(len(table))):
        raise UserError(f"{METADATA_FILE}: the channels of 'labels' must count 0, 1, 2, ... in order")
    return table


def channel_of(name: str) -> int:
    """Channel index of the structure called `name` ("L1", "L1/L2")."""
    return {s.name: s.channel for s in label_table()}[name]


def channels_from_verse(values: Iterable[int], where: str = "label") -> list[int]:
    """Channel indices of VerSe numbers, in the given order.

    Raises:
        UserError: for a number that the label table does not hold; `where` (a file name) is part of the message.
    """
    table = {s.verse: s.channel for s in label_table()}
    values = [int(v) for v in values]
    unknown = sorted({v for v in values if v not in table})
    if unknown:
        known = ", ".join(f"{s.verse} = {s.name}" for s in label_table() if s.channel)
        raise UserError(f"{where}: unknown label values {unknown}. Known VerSe numbers: {known}. Renumber the file.")
    return [table[v] for v in values]


def encode(label: np.ndarray, where: str = "label") -> np.ndarray:
    """Map of VerSe numbers -> map of channel indices (uint8), same shape.

    Raises:
        UserError: for fractional, negative or unknown values.
    """
    integers = label if np.issubdtype(label.dtype, np.integer) else np.rint(label).astype(np.int64)
    if integers is not label and not np.array_equal(integers, label):
        raise UserError(f"{where}: fractional label values, e.g. {label[integers != label].flat[0]:g}. Resample labels by nearest neighbour.")
    if integers.size and (integers.min() < 0 or integers.max() > 255):
        channels_from_verse(np.unique(integers), where)  # raises: no VerSe number lies outside 0..255
    channels = np.zeros(256, np.uint8)
    present = np.flatnonzero(np.bincount(integers.ravel().astype(np.uint8), minlength=256))
    channels[present] = channels_from_verse(present, where)
    return channels[integers]


def decode(channels: np.ndarray, scheme: str) -> np.ndarray:
    """Map of channel indices -> map of the scheme's label values (int16), same shape.

    SPIDER counts from the lowest lumbar vertebra, so its numbers shift by one where that is L6 (or L4 above a visible S1).
    SPIDER has no number for S1: it becomes background there.

    Raises:
        UserError: for an unknown `scheme`.
    """
    if scheme not in SCHEMES:
        raise UserError(f"label_scheme '{scheme}' does not exist; choose one of {', '.join(SCHEMES)}")
    values = np.zeros(len(label_table()), np.int16)
    shift = _spider_shift(channels) if scheme == "spider" else 0
    for s in label_table()[1:]:
        number = getattr(s, scheme)
        values[s.channel] = 0 if number is None else number + shift
    return values[channels]


def _spider_shift(channels: np.ndarray) -> int:
    present = np.bincount(channels.ravel(), minlength=len(label_table())) > 0
    has = {name: present[channel_of(name)] for name in ("L4", "L5", "L6", "S1")}
    if has["L6"]:
        return 1
    return -1 if has["S1"] and has["L4"] and not has["L5"] else 0
