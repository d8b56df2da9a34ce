"""Locks on files, which end with the process that holds them, however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

WINDOWS = sys.platform == "win32"
if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def hold(lock: Path, *, existing: bool = False) -> int | None:
    """The descriptor of a file, made unless it must be existing, with its lock; None if another process holds that.

    Where a file system has no locks, a file that is made is taken to be held, an existing one to be held by another.
    """
    flags = os.O_RDWR | (0 if existing else os.O_CREAT) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        file = os.open(lock, flags, 0o666)
        free = _lock(file)
        if free is False or (free is None and existing):
            os.close(file)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.lstat(lock)):
                return file
        os.close(file)  # its holder has removed it since it was opened


def _lock(file: int) -> bool | None:
    """Lock a file; False if another process holds it, None if its file system has no locks."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def let_go(lock: int, remove: Callable[[], None]) -> None:
    """Remove a lock's file and close it, in this order, so that whoever has opened it as well sees that it is no longer there;
    in the other on Windows, where no open file can be removed."""
    steps = [remove, lambda: os.close(lock)]
    for step in reversed(steps) if WINDOWS else steps:
        with suppress(OSError):
            step()
