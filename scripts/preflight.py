"""Checks that turn a failure deep in a run into one line before it."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

from scripts.errors import UserError


def check_weights(path: str, option: str) -> None:
    """
    Args:
        path: of a state_dict.
        option: the setting that names it.

    Raises:
        UserError: if there is no file at `path`, or one that is no checkpoint or would run code when it is loaded.
    """
    import torch  # here: it takes seconds to import, and everything else in this module does without

    if not Path(path).is_file():
        raise UserError(f"{path}: no weights there. Train some with configs/train.yaml, or set --{option} to a model.pt.")
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a file of weights, or one that would run code ({reason}). Set --{option} to a model.pt.") from None


def check_writable(folder: str, option: str) -> None:
    """Make a folder, and a file in it that is gone at once.

    Raises:
        UserError: if either does not work.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as handle:
            handle.write(b"0" * 4096)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{folder}: cannot be written to ({reason}). Set --{option} to a folder that can, on a disk with room.") from None


def is_true(value: bool | str) -> bool:
    """A switch as it comes from YAML or the command line, where `--figures false` is a string.

    Raises:
        UserError: if it is neither true nor false.
    """
    text = str(value).lower()
    if text not in ("true", "false"):
        raise UserError(f"'{value}' is neither True nor False")
    return text == "true"
