"""Ctrl-C, and the signals that ask a process to end: one exception, so that a command cleans up behind it whichever comes.

SIGTERM is what `kill`, `timeout`, batch systems and shutdowns send, SIGHUP a terminal that closes.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

IN_WORDS = {"SIGINT": "Interrupted", "SIGTERM": "Terminated", "SIGHUP": "Hung up"}
GRACE = 5.0  # seconds for the clean-up, in which a second signal does nothing


class Interrupt(KeyboardInterrupt):
    """One of these signals came. number: which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Call the handler on each of the signals, but for those that the process was started to ignore, as by nohup."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        numbers = [getattr(signal, name) for name in IN_WORDS if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        before = {number: there for number, there in before.items() if there not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, there in before.items():
            signal.signal(number, there)


@contextmanager
def raised() -> Iterator[None]:
    """Raise Interrupt on each of the signals, once: a second Ctrl-C does not cut short what the first one has cleaned up."""
    last = -GRACE

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last >= GRACE:
            last = time.monotonic()
            raise Interrupt(number)

    with handled(handler):
        yield


def in_words(error: KeyboardInterrupt) -> str:
    """What came."""
    return IN_WORDS[signal.Signals(number_of(error)).name]


def number_of(error: KeyboardInterrupt) -> int:
    """The signal of an exception, SIGINT if it is Python's own."""
    return getattr(error, "number", signal.SIGINT)
