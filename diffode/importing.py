"""MODULE:NAME: an object that a user's file defines, such as a model or a solver, by the names of the module and of the object.

Python looks in the working directory first, during the import only. A module runs once per process, like any that is imported.
"""

from __future__ import annotations

import importlib
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import TypeVar

from diffode.errors import InputError, in_words, shown

T = TypeVar("T")


def import_object(reference: str, kind: type[T], example: str) -> tuple[ModuleType, T]:
    """The module of `reference`, MODULE:NAME, and the object NAME in it, which must be a `kind`.

    example: code that makes one, for the error. InputError if there is none, if the module raises anything, and for the name of
    a file in place of MODULE.
    """
    where, _, name = reference.partition(":")
    if where.endswith(".py"):
        file = Path(where)
        folder = f" in the folder {file.parent}" if file.parent.name else ""
        raise InputError(f"{where} is a file, and MODULE:NAME is expected: type {file.stem}:{name}{folder}")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be younger than the last look into its folder
    try:
        with _ctrl_c_noted() as came:
            module = importlib.import_module(where)
    except BaseException as error:  # SystemExit, GeneratorExit and KeyboardInterrupt, too, if the module raises them
        if came or (not isinstance(error, Exception | SystemExit | GeneratorExit) and type(error) is not KeyboardInterrupt):
            raise
        raise InputError(f"cannot import {shown(reference)}: {_reason(error)}") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    a_kind = f"{'an' if kind.__name__[0].lower() in 'aeiou' else 'a'} {kind.__name__}"
    if not hasattr(module, name):
        candidates = ", ".join(other for other, value in vars(module).items() if isinstance(value, kind)) or "none"
        place = getattr(module, "__file__", where)
        raise InputError(
            f"cannot import {reference!r}: {place} has no {name!r}; give MODULE:NAME, NAME being {a_kind} there ({candidates})"
        )
    value = getattr(module, name)
    if not isinstance(value, kind):
        raise InputError(f"{reference} is a {type(value).__name__}, not {a_kind}: write {name} = {example}")
    return module, value


@contextmanager
def _ctrl_c_noted() -> Iterator[list[int]]:
    """A list to which each SIGINT is added before it does what it does: a KeyboardInterrupt without one is the module's own."""
    came: list[int] = []
    handler = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        handler(number, frame)  # type: ignore[operator, misc]

    listens = callable(handler) and threading.current_thread() is threading.main_thread()
    if listens:
        signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        if listens and signal.getsignal(signal.SIGINT) is note:  # the module may have set its own
            signal.signal(signal.SIGINT, handler)


def _reason(error: BaseException) -> str:
    """What a module raised and in which of its lines; or what MODULE:NAME means, if there is no such module."""
    line = next((frame for frame in reversed(traceback.extract_tb(error.__traceback__)) if frame.name == "<module>"), None)
    if line is not None:
        return f"line {line.lineno} of {Path(line.filename).name} raises {in_words(error)}"
    absent = isinstance(error, ModuleNotFoundError)
    return in_words(error) + "; give MODULE:NAME, for NAME in MODULE.py in the folder that this runs in" * absent
