"""Checks of arguments, a line each: the value as the type that is meant, or an InputError that says what was expected.

    nfe = whole("nfe", nfe, 1, 100_000)          `nfe` must be a whole number from 1 to 100000, not 10.5

The first argument is what the message calls the value: the name of a parameter, or words such as "the option eta of ddim".
Numbers of NumPy and tensors of one number are numbers, and 10.0 is a whole one; NaN and bool are none.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from difflib import SequenceMatcher
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffode.errors import InputError, shown

T = TypeVar("T")
LARGEST = 2**63 - 1  # of int64
FEW = 8  # names that a message lists in full


def wrong(name: str, expected: str, value: Any) -> InputError:
    """The error for a value that is not what is expected. A parameter is marked, so that a command can name its option."""
    return InputError(f"{f'`{name}`' if name.isidentifier() else name} must be {expected}, not {shown(value)}")


def whole(name: str, value: Any, least: int = 0, most: int = LARGEST) -> int:
    """A whole number from `least` to `most`."""
    given = value if type(value) is int else _plain_number(value)
    if not least <= given <= most or given != int(given):
        raise wrong(name, f"a whole number {f'from {least} to {most}' if most != LARGEST else f'of at least {least}'}", value)
    return int(given)


def number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, positive: bool = False, finite: bool = True
) -> float:
    """A number from `least` to `most`, above 0 if positive."""
    try:
        given = float(_plain_number(value))
    except OverflowError:  # a whole number of more than 308 digits
        given = math.nan
    if not least <= given <= most or (positive and given <= 0) or (finite and math.isinf(given)):
        kind = ["a", *["positive"] * positive, *["finite"] * (finite and most == math.inf), "number"]
        ends = [f"at least {least:g}"] * (least > (0 if positive else -math.inf)) + [f"at most {most:g}"] * (most < math.inf)
        raise wrong(name, " ".join(kind) + (" of " + " and ".join(ends) if ends else ""), value)
    return given


def flag(name: str, value: Any) -> bool:
    """True or False."""
    return bool(instance(name, value, bool | np.bool_, "True or False"))


def text(name: str, value: Any) -> str:
    """A text."""
    return instance(name, value, str, "a text")


def instance(name: str, value: Any, kind: Any, expected: str) -> Any:
    """An object of a class, or of one of several, as isinstance has them."""
    if not isinstance(value, kind):
        raise wrong(name, expected, value)
    return value


def function(name: str, value: Any, expected: str) -> Any:
    """What can be called."""
    if not callable(value):
        raise wrong(name, expected, value)
    return value


def sizes(name: str, value: Any, example: str, least: int = 1) -> tuple[int, ...]:
    """A shape: positive whole numbers, at least so many of them."""
    try:
        found = tuple(map(operator.index, value))
    except TypeError:
        raise wrong(name, f"positive whole numbers, as {example}", value) from None
    if isinstance(value, str) or len(found) < least or not all(1 <= size <= LARGEST for size in found):
        raise wrong(name, f"positive whole numbers, as {example}", value)
    return found


def choice(name: str, value: Any, known: Collection[str]) -> str:
    """One of a few names."""
    if not isinstance(value, str) or value not in known:
        raise wrong(name, " or ".join(known), value)
    return value


def array(name: str, values: Any, expected: str = "numbers") -> NDArray[np.float64]:
    """A number, or numbers of any shape, as float64."""
    try:
        found = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):  # lists of unequal lengths, tensors that are not on the host
        raise wrong(name, expected, values) from None
    if found.dtype.kind not in "iuf":
        raise wrong(name, expected, values)
    return found.astype(np.float64, copy=False)


def numbers(name: str, values: Any, most: int, *, least: int = 1, kind: str = "a list of") -> NDArray[np.float64]:
    """A list of numbers as float64, (n,) with least ≤ n ≤ most; ±∞ may be among them, NaN may not."""
    count = f"at least {least}" if most == LARGEST else f"{least} to {most}" if least < most else f"{least}"
    expected = f"{kind} {count} numbers"
    listed = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    if listed and len(values) > most:  # before they are copied
        raise wrong(name, expected, f"{len(values)} of them")
    if not listed and not hasattr(values, "__array__"):
        raise wrong(name, expected, values)
    found = array(name, values, expected)
    if found.ndim != 1 or not least <= len(found) <= most or np.isnan(found).any():
        raise wrong(name, expected, values)
    return found


def unknown(kind: str, name: Any, known: Collection[str], listing: str = "") -> InputError:
    """The error for a name that is not known: the known ones if they are few, else the nearest and where all are listed."""
    near = nearest(name, known)
    said = f"unknown {kind} {shown(name)}"
    if near:
        said += f": did you mean {' or '.join([', '.join(near[:-1])] * (len(near) > 1) + near[-1:])}?"
    if len(known) <= FEW or not listing:
        return InputError(f"{said}{'' if near else ':'} known are {', '.join(known)}")
    return InputError(f"{said}{'' if near else ':'} {listing}")


def nearest(name: Any, known: Collection[str], n: int = 3) -> list[str]:
    """The n known names that are most like it, whatever its case, spaces and hyphens; none for what is like none of them.

    "DPM++ 2M" is dpmpp2m, as in other libraries.
    """
    wanted = _letters(name) if isinstance(name, str) else ""

    def likeness(other: str) -> float:
        letters = _letters(other)
        begins = letters.startswith(wanted) or wanted.startswith(letters)
        return (letters == wanted) + begins + SequenceMatcher(None, wanted, letters).ratio()

    found = sorted(((likeness(other), other) for other in known), key=lambda pair: -pair[0]) if wanted else []
    return [other for value, other in found[:n] if value >= 0.5]


def _letters(name: str) -> str:
    """The letters and digits of a name, in lower case; ++ is pp."""
    return "".join(filter(str.isalnum, name[:80].lower().replace("++", "pp")))


def _plain_number(value: Any) -> float | int:
    """The number as Python's; NaN for what is none."""
    if getattr(value, "is_meta", False):  # a tensor without numbers
        return math.nan
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a scalar of NumPy, or a tensor of one number
        value = value.item()
    return value if isinstance(value, Real) and not isinstance(value, bool) else math.nan  # type: ignore[return-value]
