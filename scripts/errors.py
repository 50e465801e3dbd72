"""The exceptions for what a user can mend."""

from __future__ import annotations

import errno
import sys
from pathlib import Path


class UserError(SystemExit):
    """Bad input or a wrong call: one line that names the file or the setting and the fix.

    It derives from ``SystemExit`` so that `python -m monai.bundle run` ends with that line on stderr and exit code 2
    instead of a traceback: MONAI and Ignite wrap or log every other exception on its way up.
    """

    @property
    def code(self) -> int:
        """The interpreter reads it where nothing has caught the error. It would print the message itself only with the exit code 1."""
        print(self, file=sys.stderr)
        return 2


class ScanError(UserError):
    """What is wrong with one file, and what to do about it.

    Args:
        path: the file.
        reason: without a full stop.
        fix: one sentence or two.
    """

    def __init__(self, path: str | Path, reason: str, fix: str) -> None:
        super().__init__(f"{path}: {reason}. {fix}")
        self.reason = reason
        self.fix = fix


EXPORT_AGAIN = "Export or download it again."
FIX_OF_ERRNO = {
    errno.ENOENT: "Is the file still there, and not a link that leads nowhere?",
    errno.ENOSPC: "Make room on the disk of output_dir, then run the same command again.",
    errno.EDQUOT: "Make room on the disk of output_dir, then run the same command again.",
    errno.EROFS: "Set --output_dir to a folder that can be written to.",
    errno.EACCES: "Ask for the permission to read the scan and to write to output_dir.",
}


def explain(error: BaseException, path: str | Path) -> tuple[str, str]:
    """Reason and fix, a line each, for whatever went wrong with the scan at `path`."""
    while error.__cause__ is not None and str(error).startswith("applying transform"):  # MONAI's wrapping
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


def read_reason(error: BaseException) -> str:
    """Why a reader gave up, in a few words."""
    return " ".join(str(error).split())[:160] or type(error).__name__
