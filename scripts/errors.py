"""The exceptions for what a user can mend: one line on stderr, no traceback."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

_debug = False


class UserError(SystemExit):
    """Bad input: one line that names the file or the setting and the fix; exit code 1.

    It derives from ``SystemExit`` so that `python -m monai.bundle run` ends with that line on stderr instead of a traceback: MONAI and
    Ignite wrap or log every other exception on its way up.
    """

    exit_code = 1

    @property
    def code(self) -> int:
        """What Python asks an uncaught ``SystemExit`` for when it ends: prints the line, after the traceback if that is asked for."""
        if _debug:
            self.__suppress_context__ = False
            traceback.print_exception(self)
        else:
            print(self, file=sys.stderr)
        return self.exit_code


class CallError(UserError):
    """A wrong call, found before anything is read or written; exit code 2."""

    exit_code = 2


def show_tracebacks(show: bool) -> None:
    """Whether the errors of this module end a process with a traceback too."""
    global _debug
    _debug = show


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """' Did you mean X?' with the nearest of the known names, behind `prefix`, to end a message with; empty if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {prefix}{nearest[0]}?" if nearest else ""


def similar_path(path: str | Path) -> str:
    """The same for a file or folder, if it does not exist, among its neighbours."""
    path = Path(path)
    if path.exists() or not path.parent.is_dir():
        return ""
    nearest = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.85)  # a.nii is not meant by b.nii
    return f" Did you mean {path.with_name(nearest[0])}?" if nearest else ""
