"""MODULE:NAME: what a file of one's own defines, by the name of its module and a name in it.

Python looks in the working directory first, during the import only. A module is run once a process, like any that is imported.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from diffode.errors import InputError, in_words

T = TypeVar("T")


def imported(given: str, kind: type[T], how: str) -> tuple[ModuleType, T]:
    """The module of MODULE:NAME, and what NAME is there, a `kind`; how: what makes one, for the sentence.

    InputError if there is none, if the module raises anything, and for the name of a file.
    """
    where, _, name = given.partition(":")
    if where.endswith(".py"):
        file = Path(where)
        folder = f" in the folder {file.parent}" if file.parent.name else ""
        raise InputError(f"{where} is a file, and MODULE:NAME is expected: type {file.stem}:{name}{folder}")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be younger than the last look into its folder
    try:
        module = importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise InputError(f"cannot import {given!r}: {_told(error)}") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    a_kind = f"{'an' if kind.__name__[0].lower() in 'aeiou' else 'a'} {kind.__name__}"
    if not hasattr(module, name):
        there = ", ".join(other for other, value in vars(module).items() if isinstance(value, kind)) or "none"
        place = getattr(module, "__file__", where)
        raise InputError(
            f"cannot import {given!r}: {place} has no {name!r}; give MODULE:NAME, NAME being {a_kind} there ({there})"
        )
    value = getattr(module, name)
    if not isinstance(value, kind):
        raise InputError(f"{given} is a {type(value).__name__}, not {a_kind}: write {name} = {how}")
    return module, value


def _told(error: BaseException) -> str:
    """What a module raised and in which of its lines; or what to give, if there is no such module."""
    line = next((frame for frame in reversed(traceback.extract_tb(error.__traceback__)) if frame.name == "<module>"), None)
    if line is not None:
        return f"line {line.lineno} of {Path(line.filename).name} raises {in_words(error)}"
    absent = isinstance(error, ModuleNotFoundError)
    return in_words(error) + "; give MODULE:NAME, for NAME in MODULE.py in the folder that this runs in" * absent
