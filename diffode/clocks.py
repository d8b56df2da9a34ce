"""Clocks: a network's second argument, as a function of λ.

    "t"        t(λ) of the schedule, fractional where λ falls between two labels     "1-t", "1000t"    of that t; any whole number
    "label"    the same as int64, an error unless λ is snapped to labels             "sigma"           σ(λ)
    "lam"      λ                                                                     "sigma_bar"       σ̄ = σ/α = e^(−λ)
    "c_noise"  log(σ̄)/4 = −λ/4 (EDM; Karras et al., 2022, Table 1)                   "log_sigma_bar"   log σ̄ = −λ
    "angle"    arctan(σ̄) 2/π, from 0 for data to 1 for noise (Stable Audio)

Any other is given as a function of λ, from a float64 array to one of the same shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.checks import array, wrong
from diffode.errors import InputError, in_words
from diffode.schedule import Array, Schedule

Clock = str | Callable[[Array], Array]  # a name of CLOCKS, or a function of λ

CLOCKS: dict[str, Callable[[Schedule, Array], Array]] = {
    "t": lambda schedule, lam: schedule.t(lam),
    "label": lambda schedule, lam: schedule.t(lam),
    "lam": lambda schedule, lam: lam,
    "sigma": lambda schedule, lam: schedule.sigma(lam),
    "sigma_bar": lambda schedule, lam: np.exp(-lam),
    "log_sigma_bar": lambda schedule, lam: -lam,
    "c_noise": lambda schedule, lam: -lam / 4,
    "angle": lambda schedule, lam: np.arctan(np.exp(-lam)) * 2 / np.pi,
    "1-t": lambda schedule, lam: 1 - schedule.t(lam),
    "1000t": lambda schedule, lam: 1000 * schedule.t(lam),
}


def named(clock: str) -> Callable[[Schedule, Array], Array] | None:
    """The clock of that name, None if there is none."""
    if re.fullmatch(r"[1-9][0-9]{0,6}t", clock):
        return lambda schedule, lam: int(clock[:-1]) * schedule.t(lam)
    return CLOCKS.get(clock)


def check(clock: Any, schedule: Schedule) -> Clock:
    """The clock itself; InputError for an unknown name, what is no function, and labels on a schedule that has none."""
    if not callable(clock) and not (isinstance(clock, str) and named(clock)):
        raise wrong("clock", f"{', '.join(CLOCKS)}, or a function of λ", clock)
    if clock == "label" and schedule.knots is None:
        raise InputError(f"the clock of {schedule.name} is continuous and has no labels: use clock='t' or 'lam'")
    return clock


def name_of(clock: Clock) -> str:
    """Its name; of a function, what it is called."""
    return clock if isinstance(clock, str) else f"function {getattr(clock, '__name__', type(clock).__name__)}"


def lam_at(schedule: Schedule, clock: str, t: float) -> float:
    """λ at which a clock is t, for those of trained_as ("t", "1000t", "c_noise", "angle", "sigma" on the ve path): the inverse of
    `named`, kept within the ends of the schedule, since hosts have clocks in float32. InputError for t outside the schedule."""
    if clock == "c_noise":
        lam = -4 * t
    elif clock == "angle":
        lam = -np.log(np.tan(t * np.pi / 2))
    else:
        lam = float(schedule.lam(t / int(clock[:-1] or 1) if clock.endswith("t") else t))
    return float(np.clip(lam, schedule.lam_min, schedule.lam_max))


def clocks_at(schedule: Schedule, clock: Clock, lams: Sequence[float] | Array, batch: int, dtype: torch.dtype) -> Tensor:
    """A network's second argument at each λ, (evaluations, batch), in `dtype`, or int64 for labels; on the CPU.

    InputError for λ outside the schedule, for labels that are not whole, for λ that are neither one nor one per sample, for a
    name other than lam that is infinite there, as many are at λ = ±∞, and for a function that fails or does not give a finite
    number for each λ.
    """
    if np.shape(lams)[1:] not in ((), (batch,)):
        raise InputError(f"λ is one for all or one per sample: {np.shape(lams)[1]} do not go with a batch of {batch}")
    t, lam = schedule.t(lams), np.asarray(lams, np.float64)  # InputError outside the schedule, whatever the clock
    values = _named_at(schedule, clock, lam) if isinstance(clock, str) else _called_at(clock, lam)
    clocks = torch.as_tensor(values, dtype=dtype)
    if clock == "label":
        if not np.allclose(t, np.round(t), rtol=0, atol=1e-6):
            raise InputError(
                f"the grid asks for label {t.flat[np.argmax(abs(t - np.round(t)))]:.4f} of a network that takes "
                "whole labels: snap the grid (grid.snap), and take a solver whose stages are all on it, or clock='t'"
            )
        clocks = torch.as_tensor(np.round(t), dtype=torch.int64)
    return clocks if clocks.ndim == 2 else clocks[:, None].repeat(1, batch)


def _named_at(schedule: Schedule, clock: str, lam: Array) -> Array:
    """A clock by name at λ; InputError where it is infinite, but for λ itself, of which a network knows its ends."""
    function = named(clock)
    assert function, "check has found it"
    values = function(schedule, lam)
    if clock != "lam" and not np.isfinite(values).all():
        raise InputError(
            f"the clock {clock} is infinite at λ = {lam[~np.isfinite(values)][0]:g}, where the network is called: take a "
            "schedule or grid whose end is finite, as schedules.flow(0.001, 0.999), or a clock that is, as t"
        )
    return values


def _called_at(clock: Callable[[Array], Array], lam: Array) -> Array:
    """A function of λ at λ; InputError where it fails, and unless it gives a finite number for each."""
    given = f"for λ of shape {lam.shape} from {lam.min():g} to {lam.max():g} it"
    try:
        returned = clock(lam)
    except Exception as error:  # whatever it raises
        raise InputError(f"the clock must be a function of an array of λ; {given} fails with {in_words(error)}") from error
    values = array("the clock", returned, "a function of λ that gives numbers")
    if values.shape != lam.shape or not np.isfinite(values).all():
        infinite = "" if np.isfinite(values).all() else ", not all of them finite"
        raise InputError(f"the clock must give a finite number for each λ: {given} gave shape {values.shape}{infinite}")
    return values
