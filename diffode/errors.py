"""The one exception for bad input: what was given, what was expected, what to do. The command line exits with 2 on it."""

from textwrap import shorten


class InputError(ValueError):
    """A caller's mistake, described in one sentence."""


def in_words(error: BaseException) -> str:
    """The message of an exception on one line, after its type's name unless it is an InputError."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {shorten(str(error), 160)}"
