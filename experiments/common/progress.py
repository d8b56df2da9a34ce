"""What long commands say meanwhile, on stderr: on a terminal a bar, elsewhere a plain line every half minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any

from tqdm import tqdm

from experiments.common.terminal import say

EVERY = 30.0  # seconds between two lines


def on_terminal() -> bool:
    """Whether stderr is a terminal, which a bar can be drawn on."""
    return sys.stderr is not None and sys.stderr.isatty()


def announce(text: str) -> None:
    """Say on stderr what is to come, where no bar shows it."""
    if not on_terminal():
        say(text, err=True)


@contextmanager
def progress(
    total: float | None = None, desc: str = "", unit: str = "", initial: float = 0, **bar: Any
) -> Iterator[tqdm[Any] | Lines]:
    """Show how far things are, by `update(done since the last)` and `set_postfix_str(text)` of what is yielded.

    total: of `unit`, or 1 without one. bar: further settings of tqdm's bar.
    """
    if on_terminal():
        with tqdm(total=total, desc=desc, unit=unit or "it", initial=initial, **bar) as shown:
            yield shown
        return
    lines = Lines(total, desc, unit, initial)
    Thread(target=lines.speak, daemon=True).start()  # also in the middle of a step, which may take minutes
    try:
        yield lines
    finally:
        lines.ended.set()


class Lines:
    """A bar in plain lines: "solution: 12 of 32 samples, λ = +1.2, after 1:30, about 2:30 to go"."""

    def __init__(self, total: float | None, desc: str, unit: str, initial: float) -> None:
        self.total, self.desc, self.unit, self.n, self.initial = total, desc, unit, initial, initial
        self.text, self.start, self.ended = "", time.monotonic(), Event()

    def update(self, done: float = 1) -> None:
        """Count so much more as done."""
        self.n += done

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """What to say beside the count."""
        self.text = text

    def speak(self) -> None:
        """Say the line every EVERY seconds until the end."""
        with suppress(OSError, ValueError):  # nobody listens any more
            while not self.ended.wait(EVERY):
                say(self, err=True)

    def __str__(self) -> str:
        seconds, done = time.monotonic() - self.start, self.n - self.initial
        if self.total is None:
            count = f"{self.n:,.0f} {self.unit}"
        else:
            count = f"{self.n:,.0f} of {self.total:,.0f} {self.unit}" if self.unit else f"{self.n / (self.total or 1):.0%}"
        parts = [f"{self.desc}: {count}", self.text, f"after {tqdm.format_interval(seconds)}"]
        if self.total is not None and done > 0:
            parts.append(f"about {tqdm.format_interval(seconds * (self.total - self.n) / done)} to go")
        return ", ".join(filter(None, parts))


def duration(seconds: float) -> str:
    """0.012 s, 1.2 s, 12 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
