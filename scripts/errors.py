"""The one exception for what a user can mend."""

from __future__ import annotations


class UserError(SystemExit):
    """Bad input or a wrong call: one line that names the file or the setting and the fix.

    It derives from ``SystemExit`` so that `python -m monai.bundle run` ends with that line on stderr and exit code 1
    instead of a traceback: MONAI and Ignite wrap or log every other exception on its way up.
    """
