"""verify: every solver's claims, measured where it runs, in float64 and float32, against an exact Gaussian mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def verify(names: Sequence[str], report: Callable[[str], None]) -> bool:
    """Measure the claims of the solvers named (names as in registry.find; none: all there are), and report a table line by line.

    Returns whether every claim holds. InputError, before anything is measured, for a name that is not known.
    """
    raise NotImplementedError
