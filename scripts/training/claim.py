"""Keep two trainings out of one folder, where each would replace the weights of the other."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.common.errors import CallError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_claimed: dict[Path, int] = {}  # folder -> file descriptor, which holds the lock as long as this process lives


def claim(folder: str | Path) -> None:
    """Lock the folder of a training for the life of this process. Where the system or the file system has no locks, nothing is locked.

    Args:
        folder: output_dir of the training. The lock is on its subfolder `tensorboard`, which is made if it is missing.

    Raises:
        CallError: if another process trains in that folder.
    """
    locked = Path(folder).resolve() / "tensorboard"
    if fcntl is None or locked in _claimed:
        return
    locked.mkdir(parents=True, exist_ok=True)
    handle = os.open(locked, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise CallError(f"{folder}: another training is writing there. Wait for its end, or set another --output_dir.") from None
    except OSError:  # no locks here
        os.close(handle)
        return
    _claimed[locked] = handle
