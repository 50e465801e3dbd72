"""Checks that turn a failure deep in a run into one line before it."""

from __future__ import annotations

from pathlib import Path

from scripts.errors import UserError


def check_weights(path: str) -> None:
    """
    Raises:
        UserError: if there is no file at `path`.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no weights there. Train some with configs/train.yaml, or set --ckpt_path to a model.pt.")
