"""Checks that turn a failure deep in a run into one line before it."""

from __future__ import annotations

import pickle
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.common.errors import CallError, read_reason, similar_path

if TYPE_CHECKING:
    import torch  # takes a second to import


def check_weights(path: str, option: str, network: torch.nn.Module | None = None) -> None:
    """
    Args:
        path: of a state_dict.
        option: the setting that names it.
        network: what is to hold the weights; None checks the file alone.

    Raises:
        CallError: if there is no file at `path`, its weights are those of another network, or as `load_weights`.
    """
    if not Path(path).is_file():
        hint = f"Train some with configs/train.yaml, or set --{option} to a model.pt."
        raise CallError(f"{path}: no weights there. {hint}{similar_path(path)}")
    state = load_weights(path)
    if network is None:
        return
    own = getattr(network, "module", network).state_dict()  # without DistributedDataParallel
    state = state.get("model", state)  # of a last.pt
    wrong = [name for name in own.keys() | state.keys() if getattr(state.get(name), "shape", None) != getattr(own.get(name), "shape", None)]
    if wrong:
        first = min(wrong)
        there, here = (str(tuple(s[first].shape)) if first in s else "missing" for s in (state, own))
        raise CallError(
            f"{path}: weights of another network: {len(wrong)} of {len(own)} layers differ, {first} is {there} there and {here} here. "
            f"Give the --network_def and --labels that they were trained with, or another --{option}."
        )


def check_start(train_only: str, pretrained: str, resume: str) -> None:
    """
    Raises:
        CallError: for a training of one network that would leave the other at random, or of one that does not exist.
    """
    if train_only not in ("both", "outlines", "levels"):
        raise CallError(f"--train_only {train_only}: choose both, outlines or levels")
    if train_only != "both" and not (pretrained or resume):
        raise CallError(f"--train_only {train_only} keeps the rest of a trained network: set --pretrained, to models/model.pt for example")


def load_weights(path: str | Path) -> dict[str, Any]:
    """What `torch.save` wrote, on the CPU; tensors and plain values only, so that nothing in the file is ever run.

    Raises:
        CallError: if the file is damaged, or holds anything else.
    """
    import torch  # here: it takes seconds to import, and everything else in this module does without

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise CallError(
                f"{path}: refused, it holds {code[1]} beside weights, which could run code. Take a plain state_dict."
            ) from error
        is_other = isinstance(error, pickle.UnpicklingError)  # PyTorch's message is a page on its own options
        reason = "torch.save did not write it" if is_other else read_reason(error)
        raise CallError(f"{path}: cannot be read as weights ({reason}). Copy or train it again.") from error
    if not isinstance(state, dict):
        raise CallError(f"{path}: holds a {type(state).__name__}, not a state_dict")
    return state


def check_numbers(**knobs: Any) -> None:
    """
    Args:
        knobs: settings by name, a number or a list of three numbers each, all of which must be above 0.

    Raises:
        CallError: for any other value.
    """
    for name, value in knobs.items():
        values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < float("inf")]
        if len(numbers) < len(values) or (values != [value] and len(values) != 3):
            needed = "a number above 0 is" if values == [value] else "three numbers above 0 are"
            raise CallError(f"--{name} {value}: {needed} needed")


def check_between(low: float, high: float, **knobs: Any) -> None:
    """
    Args:
        low, high: the least and the most that each knob may be.
        knobs: settings by name.

    Raises:
        CallError: for any other value.
    """
    for name, value in knobs.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise CallError(f"--{name} {value}: a number from {low} to {high} is needed")


def check_writable(folder: str, option: str) -> None:
    """Make a folder, and a file in it that is gone at once.

    Raises:
        CallError: if either does not work.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as handle:
            handle.write(b"0" * 4096)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CallError(f"{folder}: cannot be written to ({reason}). Set --{option} to a folder that can, on a disk with room.") from None


def is_true(value: bool | str) -> bool:
    """A switch as it comes from YAML or the command line, where `--figures false` is a string.

    Raises:
        CallError: if it is neither true nor false.
    """
    text = str(value).lower()
    if text not in ("true", "false"):
        raise CallError(f"'{value}' is neither True nor False")
    return text == "true"
