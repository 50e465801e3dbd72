"""Write files so that a reader never sees half of one, check whether a file is whole, and hash its content."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PREFIX = ".partial_"  # hidden files are never taken for scans
GZIP = b"\x1f\x8b"  # the first bytes of a gzip file
CHUNK_BYTES = 2**20  # read at a time
STALE_S = 6 * 3600.0  # a partial file that has not changed for so long is left over from a killed run


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path`, then rename it: a crash or a full disk leaves no half file under the real name.

    The partial file has a unique name, so that two processes may write the same file. Partial files of a killed process are removed by
    the next one that writes to this folder.
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


def write_json(path: str | Path, content: Any) -> Path:
    """Write an indented JSON file, whole or not at all."""
    text = json.dumps(content, indent=1) + "\n"
    return write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


@cache  # once per folder in a process, because a folder of many masks takes long to list
def _remove_stale(folder: Path) -> None:
    for left in folder.glob(f"{PREFIX}*"):
        if _age_s(left) > STALE_S:
            with suppress(OSError):  # another user's, or a folder, which its own writer removes
                left.unlink()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes that ask for it, so that none changes a table between another's reading and writing it.

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
    except FileNotFoundError:  # another process has just removed or renamed it
        return 0.0


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file, as hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def is_half_gzip(path: Path) -> bool:
    """Return True for an empty file or a gzip file that ends too early; False for other formats, and for an unreadable file."""
    try:
        with path.open("rb") as handle:
            start = handle.read(2)
    except OSError:
        return False
    return start in (b"", GZIP[:1]) or (start == GZIP and not is_whole_gzip(path))


def is_whole_gzip(path: Path) -> bool:
    """Return True if a gzip file can be read up to the checksum at its end."""
    try:
        with gzip.open(path) as handle:
            while handle.read(CHUNK_BYTES):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True
