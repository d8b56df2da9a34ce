"""The one exception for bad input: what was given, what was expected, what to do. The command line exits with 2 on it."""

from __future__ import annotations

import re
import reprlib
from typing import Any

WORDS = reprlib.Repr()  # of what others wrote: short, whatever it holds and however deep it is
WORDS.maxstring = WORDS.maxother = WORDS.maxlong = 80
WORDS.maxlist = WORDS.maxtuple = WORDS.maxset = 8
ADDRESS = re.compile(" at 0x[0-9a-fA-F]+")  # in memory, which is another in every run


class InputError(ValueError):
    """A caller's mistake, described in one sentence."""


def in_words(error: BaseException) -> str:
    """The message of an exception on one line, after its type's name unless it is an InputError."""
    return (
        str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {one_line(str(error), 160)}".removesuffix(": ")
    )


def named(function: Any) -> str:
    """What a message calls a function."""
    return getattr(function, "__name__", None) or shown(function)


def one_line(text: str, most: int = 80) -> str:
    """The text on one line of at most `most` characters, without any that are not printable."""
    line = " ".join("".join(char if char.isprintable() or char.isspace() else "?" for char in text[: 4 * most]).split())
    return line if len(line) <= most else line[: most - 4] + " ..."


def shown(value: Any, most: int = 80) -> str:
    """A value as a message shows it: like repr, on one line of at most `most` characters, without control characters."""
    try:
        return one_line(ADDRESS.sub("", WORDS.repr(value)), most)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return f"a {type(value).__name__} of very many digits"
