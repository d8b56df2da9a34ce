"""What reaches the terminal: text that is only text, and messages of bounded length.

Text that comes from files and from users is data: what would move the cursor, change colours or reorder letters is printed as
its escape. A reader that leaves (`verify | head`) ends a command with exit code 141, as shells have it for SIGPIPE; a standard
output that is full is an error as of any other file.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

LONGEST_MESSAGE = 390  # characters: with "Error: " under 400
LONG_WORD = re.compile(r"\S{61,}")

UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories of Unicode: control, format, surrogates, none; line ends


def printable(text: str) -> str:
    """The text on one line, with whatever is no character to be seen as its escape of Python."""
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in UNSEEN else c for c in text)


def say(text: object, *, err: bool = False) -> None:
    """Print text, on stderr if err, whatever it holds; its lines remain lines."""
    try:
        click.echo("\n".join(map(printable, str(text).split("\n"))), err=err)
    except OSError as error:
        error.filename = "standard error" if err else "standard output"
        raise


def bounded(message: str) -> str:
    """A message on one line of bounded length: of a longer one long words, which users gave, lose their middle, and then
    it loses its own. What is wrong stands at the beginning and what to do at the end."""
    message = printable(message)
    if len(message) > LONGEST_MESSAGE:
        message = LONG_WORD.sub(lambda word: f"{word[0][:40]}…{word[0][-15:]}", message)
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[: LONGEST_MESSAGE // 2 - 1]} … {message[2 - LONGEST_MESSAGE // 2 :]}"
    return message


@contextmanager
def prepared() -> Iterator[None]:
    """Print what a terminal cannot show, as λ where there is only ASCII, as its escape, and no warnings of libraries, unless
    Python was asked for them (-W, PYTHONWARNINGS)."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a stream that is closed, None, or not of text
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", append=True)  # where nothing else says what to do with one
        yield


def abandon() -> None:
    """Print nothing more on standard output, nor what waits there, which Python would try to when it ends."""
    with suppress(OSError, ValueError, AttributeError):  # it has no descriptor where a test reads it
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
