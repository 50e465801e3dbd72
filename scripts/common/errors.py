"""Exceptions for errors that a user can fix, shown as one line on stderr without traceback, and the words of their messages."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Iterable, Sized
from pathlib import Path

_debug = False


class UserError(SystemExit):
    """Error in the input: its one line names the file or the setting and the fix; exit code 1.

    It derives from ``SystemExit`` so that `python -m monai.bundle run` ends with that line on stderr instead of a traceback: MONAI and
    Ignite wrap or log every other exception on its way up.
    """

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.raised_at = traceback.extract_stack()[:-1] if _debug else []
        self.printed = False

    @property
    def code(self) -> int:
        """Print the error, after its traceback if tracebacks are on, and return the exit code.

        Python reads this attribute of an uncaught ``SystemExit`` when it ends. Others may read it too, so only the first time prints.
        """
        if self.printed:
            return self.exit_code
        self.printed = True
        if _debug:
            self.__suppress_context__ = False
            if self.__traceback__ is None:  # the interpreter has already removed it
                sys.stderr.write("".join(["Traceback (most recent call last):\n", *traceback.format_list(self.raised_at)]))
            traceback.print_exception(self)
        else:
            print(self, file=sys.stderr)
        return self.exit_code


ANY_FAULT = (Exception, UserError)  # a UserError is a SystemExit, which `Exception` does not cover


class CallError(UserError):
    """Error in the call, found before anything is read or written; exit code 2."""

    exit_code = 2


class ScanError(UserError):
    """Error in one file, with its reason and its fix.

    Args:
        path: the file.
        reason: what is wrong with it, without a full stop.
        fix: what to do about it, one sentence or two.
    """

    def __init__(self, path: str | Path, reason: str, fix: str) -> None:
        super().__init__(f"{path}: {reason}. {fix}")
        self.reason = reason
        self.fix = fix


def show_tracebacks(show: bool) -> None:
    """Let the errors of this module end a process with a traceback too, or without one."""
    global _debug
    _debug = show


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ' Did you mean X?' to end a message with, X being `prefix` and the known name nearest to `name`; empty if none is near."""
    longer = sorted(k for k in known if len(name) > 2 and k.startswith(name))  # the end of the name may have been left off
    nearest = longer or difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {prefix}{nearest[0]}?" if nearest else ""


def similar_path(path: str | Path) -> str:
    """Return ' Did you mean X?' with the neighbour most like a path that does not exist; empty if it exists or none is near."""
    path = Path(path)
    if path.exists() or not path.parent.is_dir():
        return ""
    others = {*os.listdir(path.parent)} - {path.name}  # a link that leads nowhere is no suggestion
    nearest = difflib.get_close_matches(path.name, sorted(others), n=1, cutoff=0.85)  # b.nii is not a misspelt a.nii
    return f" Did you mean {path.with_name(nearest[0])}?" if nearest else ""


EXPORT_AGAIN = "Export or download it again."
FIX_OF_ERRNO = {
    errno.ENOENT: "Is the file still there, and not a link that leads nowhere?",
    errno.ENOSPC: "Make room on the disk of output_dir, then run the same command again.",
    errno.EFBIG: "Make room on the disk of output_dir, or raise the limit of a file's size (ulimit -f), then run the same command again.",
    errno.EDQUOT: "Make room on the disk of output_dir, then run the same command again.",
    errno.EROFS: "Set --output_dir to a folder that can be written to.",
    errno.ENAMETOOLONG: "Give it a shorter name: the names of its mask and of the files beside it are longer.",
    errno.ENOTDIR: "A file lies where a folder of output_dir should be: move it, or set another --output_dir.",
    errno.EPERM: "Set --output_dir to a folder that can be written to.",
    errno.EACCES: "Ask for the permission to read the scan and to write to output_dir.",
}


def explain(error: BaseException, path: str | Path) -> tuple[str, str]:
    """Return reason and fix, a line each, for whatever went wrong with the scan at `path`."""
    while error.__cause__ is not None and str(error).startswith("applying transform"):  # MONAI has wrapped it
        error = error.__cause__
    text = " ".join(str(error).split())
    if isinstance(error, ScanError):
        return error.reason, error.fix
    if isinstance(error, UserError):
        return text.removeprefix(f"{path}: "), "See the reason."
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return f"out of memory ({text[:160]})", "Lower --sw_batch_size, set --num_workers 0, or use a machine with more memory."
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or text}{where}", FIX_OF_ERRNO.get(error.errno, EXPORT_AGAIN)
    return f"{type(error).__name__}: {text[:300]}", "Look at the scan in a viewer. If it is fine there, report this line to the authors."


def counted(items: int | Sized, what: str) -> str:
    """Return a number with its noun: `1 scan`, `2 scans`."""
    count = items if isinstance(items, int) else len(items)
    return f"{count} {what}{'' if count == 1 else 's'}"


def listed(items: Iterable[object], most: int = 1) -> str:
    """Return the first items of a list, with dots if there are more: `a, b, ...`."""
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")


def shown(text: object) -> str:
    """Escape whatever cannot be printed or drawn in one line: file names may hold line breaks, and bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def read_reason(error: BaseException) -> str:
    """Return in a few words why a reader gave up."""
    return " ".join(str(error).split())[:160] or type(error).__name__
