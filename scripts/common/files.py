"""Write files so that a reader never sees half of one, see whether one is whole, and tell whether it has changed."""

from __future__ import annotations

import gzip
import hashlib
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PREFIX = ".partial_"  # hidden: never taken for a scan
GZIP = b"\x1f\x8b"  # the first bytes of a file
CHUNK_BYTES = 2**20  # read at a time
STALE_S = 6 * 3600.0  # a partial file that nobody has written to for so long belongs to a run that was killed


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path`, then rename it: a crash or a full disk leaves no half file under the real name.

    The partial file has a name of its own, so that two processes may write the same file. What a killed process has left is removed
    by the next one that writes to this folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path.parent)
    partial = path.with_name(f"{PREFIX}{uuid.uuid4().hex[:8]}_{path.name}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@cache
def _remove_stale(folder: Path) -> None:
    """Once in a process: a folder of many masks takes long to look through."""
    for left in folder.glob(f"{PREFIX}*"):
        if _age_s(left) > STALE_S:
            left.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Other processes that ask for this folder wait, so that none changes a table between another's reading and writing it.

    Where the system or the file system has no such locks, nobody waits.
    """
    if fcntl is None or not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # another process was faster
        return 0.0


def sha256_of(path: str | Path) -> str:
    """sha256 of a file, as hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def is_half_gzip(path: Path) -> bool:
    """An empty file, or a gzip file that ends too early. What cannot be read, or is no gzip file, is none."""
    try:
        with path.open("rb") as handle:
            start = handle.read(2)
    except OSError:
        return False
    return start in (b"", GZIP[:1]) or (start == GZIP and not is_whole_gzip(path))


def is_whole_gzip(path: Path) -> bool:
    """Read it to the checksum at its end."""
    try:
        with gzip.open(path) as handle:
            while handle.read(CHUNK_BYTES):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True
