"""The label table of `configs/metadata.json`, or one of your own, and the numbering schemes of label files.

The network, the post-processing and every array inside the bundle use the *channel index*. Files use one of the schemes below,
and are converted when they are read or written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from scripts.common.errors import CallError, UserError, did_you_mean, similar_path

METADATA_FILE = Path(__file__).resolve().parents[1] / "configs" / "metadata.json"
SCHEMES = ("verse", "channel", "spider", "totalspineseg")
SHARED = {("totalspineseg", "L6/S1"), ("spider", "L6")}  # their numbers stand for another structure too; the rest of the file tells which
SPIDER_ALONE = frozenset(range(100, 126))  # other numbers in SPIDER's masks: the canal, and partly visible vertebrae
ROUNDING = 0.01  # of label values that a file stores with a scale factor
LISTED = 5  # a message lists so many unknown values; more of them mostly mean that the file is a scan
OTHER_TABLE = " It takes VerSe numbers, or those of the table that was given to prepare: set --labels to that."
OWN_TABLE = "SPINE_MRI_LABELS"  # an environment variable, because worker processes need it too


@dataclass(frozen=True)
class Structure:
    """One row of the label table."""

    channel: int  # class index of the network
    name: str  # "L1", or "L1/L2" for the disc below L1
    verse: int  # T1..T12 = 8..19, L1..L6 = 20..25, S1 = 26; the disc below vertebra v is 100 + v
    totalspineseg: int | None = None  # None: not part of that scheme
    spider: int | None = None  # counted from L5 = 1 upwards, discs from L5/S1 = 201

    @property
    def is_disc(self) -> bool:
        return names_disc(self.name)

    @property
    def level(self) -> str:
        """The body itself, or the body above a disc: `L1` for the body L1 and for the disc L1/L2."""
        return level_of(self.name)

    @property
    def kind(self) -> str:
        """`body` or `disc`; `background` for channel 0."""
        return "background" if self.channel == 0 else "disc" if self.is_disc else "body"


def names_disc(name: str) -> bool:
    """Return True for the name of a disc, which joins the bodies above and below it: `L1/L2`."""
    return "/" in name


def level_of(name: str) -> str:
    """Return the name of the body itself, or of the body above a disc."""
    return name.split("/")[0]


def use_table(path: str = "") -> None:
    """Use the label table of a JSON file from now on, in this process and those it starts; without a path, that of metadata.json.

    The file holds a list like `labels` in metadata.json, or an object with such a list under `labels`: the background, bodies from top to
    bottom, discs from top to bottom, each with `channel`, `name` and `verse`, the number in the label files.

    Raises:
        CallError: if the file is missing or holds no table.
        UserError: if its table contradicts itself.
    """
    os.environ.pop(OWN_TABLE, None)
    if path:
        os.environ[OWN_TABLE] = str(Path(path).absolute())
        try:
            label_table()
        except UserError:
            del os.environ[OWN_TABLE]
            raise


def label_table() -> tuple[Structure, ...]:
    """Return all structures in channel order, background first."""
    return _read_table(os.environ.get(OWN_TABLE, str(METADATA_FILE)))


def of_kind(kind: str, absent: Collection[str] = ()) -> list[Structure]:
    """Return the bodies (`body`) or discs (`disc`) of the table from top to bottom, leaving out the names in `absent`."""
    return [s for s in label_table() if s.kind == kind and s.name not in absent]


def channels_of(kind: str) -> list[int]:
    """Return the channel indices of all bodies (`body`) or discs (`disc`), from top to bottom."""
    return [s.channel for s in of_kind(kind)]


@cache
def _read_table(path: str) -> tuple[Structure, ...]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        rows = content["labels"] if isinstance(content, dict) else content
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("'labels' must be a list of objects with channel, name and verse")
        table = tuple(Structure(**row) for row in rows)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        near = "" if Path(path).exists() else similar_path(path)
        reason = f"the key {error} is missing" if isinstance(error, KeyError) else str(error).removeprefix("Structure.__init__() ")
        raise CallError(f"{path}: no label table there ({reason}). It is a list like 'labels' in {METADATA_FILE}.{near}") from None
    for s in table:
        _check_row(path, s)
    if [s.channel for s in table] != list(range(len(table))) or len(table) < 2:
        raise UserError(f"{path}: the channels of 'labels' must count 0, 1, 2, ... in order")
    if (table[0].name, table[0].verse) != ("background", 0):
        raise UserError(f"{path}: channel 0 must be the background, with the number 0: it is {table[0].name}, {table[0].verse}")
    for field in ("name", "verse", "totalspineseg", "spider"):
        values = [getattr(s, field) for s in table if getattr(s, field) is not None and (field, s.name) not in SHARED]
        if len(set(values)) < len(values):
            raise UserError(f"{path}: two structures share a {field}, {sorted({v for v in values if values.count(v) > 1})}")
    _check_order(path, table)
    return table


def _check_order(path: str, table: Sequence[Structure]) -> None:
    """Refuse discs without both of their bodies, and bodies that are not listed from top to bottom.

    Raises:
        UserError: for either.
    """
    names = {s.name for s in table}
    incomplete = [s.name for s in table if s.is_disc and not {*s.name.split("/")} <= names]
    if incomplete:
        raise UserError(f"{path}: no bodies above and below the discs {incomplete}; a disc is named after both, e.g. 'L1/L2'")
    bodies = [s.name for s in table if s.kind == "body"]
    inverted = [s.name for s in table if s.is_disc and bodies.index(s.level) > bodies.index(s.name.split("/")[1])]
    if inverted:  # level names are assigned in the order of the table
        raise UserError(f"{path}: bodies must be listed from top to bottom, but the disc {inverted[0]} names the lower one first")


def _check_row(path: str, row: Structure) -> None:
    """Refuse a name that is no text, and a number that no mask can hold.

    Raises:
        UserError: for either.
    """
    if not isinstance(row.name, str) or not row.name:
        raise UserError(f"{path}: channel {row.channel!r} has the name {row.name!r}; a text is needed, such as 'L1'")
    for field in ("channel", "verse", "totalspineseg", "spider"):
        value = getattr(row, field)
        if value is None and field in ("spider", "totalspineseg"):
            continue  # not part of that scheme
        if type(value) is not int or not 0 <= value <= 255:
            raise UserError(f"{path}: the {field} of {row.name} is {value!r}; a whole number from 0 to 255 is needed, masks are 8-bit")


def structure(name: str) -> Structure:
    """Return the structure called `name` ("L1", "L1/L2")."""
    return {s.name: s for s in label_table()}[name]


def anatomical_order() -> list[int]:
    """Return the channels from head to feet: each body, then the disc below it. L5/S1 comes before L6."""
    table = label_table()[1:]
    bodies = [s.name for s in table if not s.is_disc]
    return [s.channel for s in sorted(table, key=lambda s: (bodies.index(s.level), s.is_disc))]


def encode(values: np.ndarray, where: str = "label", scheme: str = "verse") -> np.ndarray:
    """Convert the label values of a file to channel indices (uint8) of the same shape.

    SPIDER counts from the lowest lumbar vertebra, which is taken to be L5: its files do not say whether it is L6.

    Args:
        values: integers, or floats that differ from integers by `ROUNDING` at most, as scaled files have them.
        where: file name for the messages.
        scheme: the numbering scheme of the values.

    Raises:
        CallError: for an unknown scheme.
        UserError: for fractional or infinite values, NaN, and values that the scheme does not hold.
    """
    check_scheme(scheme)
    with np.errstate(invalid="ignore"):  # casting NaN warns; it is refused below
        integers = values if np.issubdtype(values.dtype, np.integer) else np.rint(values).astype(np.int64)
    if integers is not values and not np.isfinite(values).all():
        raise UserError(f"{where}: label values that are NaN or infinite. Set them to 0, or to the number of their structure.")
    if integers is not values and (fractional := np.abs(integers - values) > ROUNDING).any():
        raise UserError(f"{where}: fractional label values, e.g. {values[fractional].flat[0]:g}. Resample labels by nearest neighbour.")
    if integers.size and (integers.min() < 0 or integers.max() > 255):
        _channels_of_numbers(np.unique(integers), where, scheme)  # raises, because every scheme keeps to 0..255
    channels = np.zeros(256, np.uint8)
    present = np.flatnonzero(np.bincount(integers.ravel().astype(np.uint8), minlength=256))
    channels[present] = _channels_of_numbers(present, where, scheme)
    return _split_shared_disc(channels[integers]) if scheme == "totalspineseg" else channels[integers]


def _split_shared_disc(channels: np.ndarray) -> np.ndarray:
    """Give the disc above L6 back to L5/S1, where both were read as L6/S1 because TotalSpineSeg has one number for the two."""
    of_name = {s.name: s.channel for s in label_table()}
    if {"L5", "L6", "L5/S1", "L6/S1"} <= of_name.keys():
        l5, l6, discs = (np.argwhere(channels == of_name[name]) for name in ("L5", "L6", "L6/S1"))
        if len(l5) and len(l6):
            is_above = (discs - l6.mean(0)) @ (l5.mean(0) - l6.mean(0)) > 0
            channels[tuple(discs[is_above].T)] = of_name["L5/S1"]
    return channels


def channels_from_verse(values: Iterable[int], where: str = "'labelled'") -> list[int]:
    """Return the channel indices of VerSe numbers (or the numbers of a table of your own) in the given order, as `labelled` lists them.

    Raises:
        UserError: for a number that the label table does not hold; `where` (a file name) is part of the message.
    """
    return _channels_of_numbers(values, where, "verse", fix=OTHER_TABLE)


def _channels_of_numbers(values: Iterable[int], where: str, scheme: str, fix: str = "") -> list[int]:
    values = [int(v) for v in values]
    known = _structures_by_number(scheme, values)
    unknown = sorted(set(values) - known.keys())
    if unknown:
        first, more = unknown[:LISTED], f" and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
        raise UserError(f"{where}: unknown label values {first}{more}.{_hint_on_unknown(unknown, values, known, scheme, fix)}")
    return [known[v].channel for v in values]


def _structures_by_number(scheme: str, present: Collection[int]) -> dict[int, Structure]:
    """Return the structures of a scheme by their number, as a file means them that holds the numbers `present`.

    Of two structures with one number the first in the table is meant, but for the discs L5/S1 and L6/S1 in TotalSpineSeg: their number
    means L6/S1 in a file with an L6.
    """
    table = label_table()
    by_number = {0: table[0]}  # 0 is the background in every scheme
    for s in table:
        if (number := getattr(s, scheme)) is not None:
            by_number.setdefault(number, s)
    by_name = {s.name: s for s in table}
    if scheme == "totalspineseg" and "L6/S1" in by_name and by_name["L6"].totalspineseg in present:
        lowest_disc = by_name["L6/S1"]
        by_number[lowest_disc.totalspineseg] = lowest_disc
    return by_number


def _hint_on_unknown(unknown: Sequence[int], values: Sequence[int], known: dict[int, Structure], scheme: str, fix: str) -> str:
    """Return the sentences behind a list of unknown values: `fix` if it is given, else what may be wrong and what the scheme has."""
    hint = fix or _other_scheme(values, scheme)
    if not hint:
        pairs = ", ".join(
            f"{number} = {s.name}" for number, s in sorted(known.items(), key=lambda item: item[0] or 0) if number and s.channel
        )
        hint = f"{' Is it a scan, not a mask?' if len(unknown) > LISTED else ''} The label scheme '{scheme}' has {pairs}."
    if scheme == "spider" and SPIDER_ALONE.intersection(unknown):
        hint += " Set SPIDER's canal (100) and partly visible vertebrae (101 to 125) to 0 first."
    return hint


def _other_scheme(values: Sequence[int], scheme: str) -> str:
    """Return a sentence that names the schemes which hold all values, or an empty text if none does."""
    held = {other: {getattr(s, other) for s in label_table()} for other in SCHEMES if other != scheme}
    fitting = [other for other, own in held.items() if {*values} <= own | (SPIDER_ALONE if other == "spider" else set())]
    which = " or ".join(map(repr, fitting))
    return f" All values are numbers of {which}: set --read_scheme to that, or --label_scheme for a mask." if fitting else ""


def check_labelled(numbers: Sequence[int]) -> None:
    """Refuse a value of the option `labelled` that is not a list of VerSe numbers in the label table.

    Raises:
        CallError: for anything but a list of whole numbers, and for a number that the label table lacks.
    """
    known = {s.verse: s.name for s in label_table()[1:]}
    if not isinstance(numbers, (list, tuple)) or not all(type(n) is int for n in numbers):
        raise CallError(f"--labelled {numbers}: a list of numbers is needed, such as {[*known][:2]}")
    if unknown := [n for n in numbers if n not in known]:
        table = ", ".join(f"{number} = {name}" for number, name in known.items())
        raise CallError(f"--labelled {list(numbers)}: the label table has no {', '.join(map(str, unknown))}. It has {table}.")


def check_scheme(scheme: str) -> None:
    """Refuse a scheme that does not exist, or in which no structure of the label table has a number.

    Raises:
        CallError: for either.
    """
    if scheme not in SCHEMES:
        raise CallError(f"label scheme '{scheme}' does not exist; choose one of {', '.join(SCHEMES)}.{did_you_mean(str(scheme), SCHEMES)}")
    if all(getattr(s, scheme) is None for s in label_table()[1:]):
        raise CallError(f"label scheme '{scheme}': no structure of the label table has a number in it; choose another, or add the numbers")


def decode(channels: np.ndarray, scheme: str) -> np.ndarray:
    """Convert a map of channel indices to the label values of a scheme (int16), same shape; see `numbers`.

    Raises:
        CallError: for an unknown `scheme`.
    """
    return numbers(channels, scheme)[channels]


def numbers(channels: np.ndarray, scheme: str) -> np.ndarray:
    """Return the label value of every channel (int16, shape C) in a scheme, for a mask that holds these channels.

    SPIDER counts from the lowest lumbar vertebra, so its numbers shift by one where that is L6 (or L4 above a visible S1).
    SPIDER has no number for S1: it becomes background there.

    Raises:
        CallError: for an unknown `scheme`.
    """
    check_scheme(scheme)
    values = np.zeros(len(label_table()), np.int16)
    shift = _spider_shift(channels) if scheme == "spider" else 0
    for s in label_table()[1:]:
        number = getattr(s, scheme)
        values[s.channel] = 0 if number is None else number + shift
    return values


def _spider_shift(channels: np.ndarray) -> int:
    present = np.bincount(channels.ravel(), minlength=len(label_table())) > 0
    has = {s.name for s in label_table() if present[s.channel]}
    if "L6" in has:
        return 1
    return -1 if {"S1", "L4"} <= has and not {"L5", "L5/S1"} & has else 0
