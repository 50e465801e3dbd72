"""Keep two trainings out of one folder, where each would replace the weights of the other."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.common.errors import CallError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "tensorboard/.lock"  # below the folder of a training
_claimed: dict[Path, int] = {}  # file -> its descriptor, which holds the lock as long as this process lives


def claim(folder: str | Path) -> None:
    """Lock the folder of a training for the life of this process. Where the system or the file system has no locks, nothing is locked.

    The lock is one of POSIX, which the processes that read data do not inherit: they outlive a killed training by some seconds.

    Args:
        folder: output_dir of the training.

    Raises:
        CallError: if another process trains in that folder.
    """
    path = Path(folder).resolve() / LOCK
    if fcntl is None or path in _claimed:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(handle)
        raise CallError(f"{folder}: another training is writing there. Wait for its end, or set another --output_dir.") from None
    except OSError:  # no locks here
        os.close(handle)
        return
    _claimed[path] = handle
