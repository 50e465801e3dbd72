"""Checks that turn a failure deep in a run into one line before it."""

from __future__ import annotations

from pathlib import Path

from scripts.errors import UserError


def check_weights(path: str, option: str) -> None:
    """
    Args:
        path: of a state_dict.
        option: the setting that names it.

    Raises:
        UserError: if there is no file at `path`.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no weights there. Train some with configs/train.yaml, or set --{option} to a model.pt.")


def is_true(value: bool | str) -> bool:
    """A switch as it comes from YAML or the command line, where `--figures false` is a string.

    Raises:
        UserError: if it is neither true nor false.
    """
    text = str(value).lower()
    if text not in ("true", "false"):
        raise UserError(f"'{value}' is neither True nor False")
    return text == "true"
