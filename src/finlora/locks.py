"""A folder in which one process works at a time: a lock that ends with the process, however that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Busy(Exception):
    """Another process holds the folder."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder for as long as the block lasts.  Where a system or its file system knows no such locks, nothing is held.

    Raises: Busy where another process holds it, or has just renamed it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        raise Busy from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy from None
        except OSError:  # a file system without them
            pass
        if not folder.exists() or not os.path.samestat(os.stat(folder), os.fstat(handle)):
            raise Busy
        yield
    finally:
        os.close(handle)
