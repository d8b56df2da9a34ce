"""MODULE:NAME: an object that a user's file defines, such as a model or a solver, by the names of the module and of the object.

Python looks in the working directory first, during the import only. A module runs once per process, like any that is imported.
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
        module = importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise InputError(f"cannot import {reference!r}: {_reason(error)}") from error
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


def _reason(error: BaseException) -> str:
    """What a module raised and in which of its lines; or what MODULE:NAME means, if there is no such module."""
    line = next((frame for frame in reversed(traceback.extract_tb(error.__traceback__)) if frame.name == "<module>"), None)
    if line is not None:
        return f"line {line.lineno} of {Path(line.filename).name} raises {in_words(error)}"
    absent = isinstance(error, ModuleNotFoundError)
    return in_words(error) + "; give MODULE:NAME, for NAME in MODULE.py in the folder that this runs in" * absent
