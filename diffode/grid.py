"""Grids: the λ of a solver's steps, strictly increasing float64, noisy to clean.

A grid of n steps has n + 1 values, from the schedule's noisy end to its clean end. With `denoise` the last value is λ = +∞, so
that the last step, one of the n, ends at σ = 0 with the network's x̂0. Every step goes from one value to the next.

The sub-sequences τ of the DDIM paper, as its authors' code has them (ermongroup/ddim), are S whole labels; the largest need not
be the schedule's last, and the smallest is 0, from which the last of S steps leads to α = 1. So they need `denoise`:

    tau-quadratic    ⌊u²⌋ at S equally spaced u from 0 to √(0.8 T)        CIFAR-10
    tau-linear       0, T // S, 2 (T // S), ... below T                   all others (appendix D.2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from diffode.checks import choice, flag, numbers, unknown, whole
from diffode.errors import InputError, shown
from diffode.reading import MOST_JSON, parse_json, read_bytes, reading
from diffode.schedule import Array, Schedule, require

MOST_STEPS = 100_000


def logsnr(schedule: Schedule, steps: int) -> Array:
    """Equal steps in λ (DPM-Solver; Lu et al., 2022)."""
    return np.linspace(schedule.lam_min, schedule.lam_max, steps + 1)


def time(schedule: Schedule, steps: int) -> Array:
    """Equal steps in the network's clock t: like the linear τ of the DDIM paper, which is tau-linear; in u of a shifted flow."""
    u = np.linspace(schedule.unwarp(schedule.t_noisy), schedule.unwarp(schedule.t_clean), steps + 1)
    return schedule.lam(_exact_ends(schedule.warp(u), schedule))


def quadratic(schedule: Schedule, steps: int) -> Array:
    """Equal steps in √t: like the quadratic τ of the DDIM paper, which is tau-quadratic."""
    first, last = schedule.unwarp(schedule.t_noisy), schedule.unwarp(schedule.t_clean)
    u = np.linspace(np.sqrt(first), np.sqrt(last), steps + 1) ** 2
    return schedule.lam(_exact_ends(schedule.warp(u), schedule))


def _exact_ends(t: Array, schedule: Schedule) -> Array:
    """t with the ends of the clock, whatever the rounding of the way there."""
    t[0], t[-1] = schedule.t_noisy, schedule.t_clean
    return t


def karras(schedule: Schedule, steps: int, rho: float = 7.0) -> Array:
    """Equal steps in σ̄^(1/ρ), σ̄ = σ/α = e^(−λ), ρ = 7 (Karras et al., 2022, Eq. 5)."""
    first, last = np.exp(-schedule.lam_min / rho), np.exp(-schedule.lam_max / rho)
    return -rho * np.log(np.linspace(first, last, steps + 1))


GRIDS: dict[str, Callable[[Schedule, int], Array]] = {
    "logsnr": logsnr,
    "time": time,
    "quadratic": quadratic,
    "karras": karras,
}
TAUS: dict[str, Callable[[int, int], Sequence[int]]] = {  # (labels, S) -> τ
    "tau-linear": lambda labels, steps: range(0, labels, max(labels // steps, 1)),
    "tau-quadratic": lambda labels, steps: (np.linspace(0, np.sqrt(labels * 0.8), steps) ** 2).astype(int).tolist(),
}


def make(grid: str | Sequence[float], schedule: Schedule, steps: int | None = None, *, denoise: bool = False) -> Array:
    """The grid of that name with `steps` steps, λ of shape (steps + 1,); or a list of λ, checked, as a grid.

    steps: needed with a name; with a list it may be left out, and must fit. denoise: end with the step to λ = +∞, one of the
    steps. InputError for an unknown name, a wrong number of steps, and λ out of order or outside the schedule.
    """
    require(schedule)
    denoise = flag("denoise", denoise)
    if not isinstance(grid, str):
        values = _within(numbers("grid", grid, MOST_STEPS + 1, kind="a name, or a list of"), schedule)
        values = check([*values, np.inf] if denoise and np.inf not in values else values)
        schedule.t(values[values < np.inf])
        if steps is not None and len(values) != steps + 1:
            raise InputError(
                f"the grid has {len(values) - 1} steps where {steps} were asked for: leave steps and nfe out, "
                f"or give {steps + 1} values of λ"
            )
        return values
    steps = whole("steps", steps, 1, MOST_STEPS)
    if grid in TAUS:
        return _tau_of_steps(grid, schedule, steps, denoise)
    if grid not in GRIDS:
        raise unknown("grid", grid, [*GRIDS, *TAUS, "a list of increasing λ"])
    if grid in ("logsnr", "karras") and not np.isfinite([schedule.lam_min, schedule.lam_max]).all():
        raise InputError(
            f"the grid {grid} needs finite ends, and {schedule.name} has λ = {schedule.lam_min:g} to {schedule.lam_max:g}: "
            'use grid="time", or a list of λ'
        )
    finite = steps - (denoise and schedule.lam_max < np.inf)
    values = GRIDS[grid](schedule, finite) if finite else np.empty(1)
    values[-1], values[0] = schedule.lam_max, schedule.lam_min  # exactly, whatever the map's rounding
    return check([*values, np.inf] if finite < steps else values)


def _within(values: Array, schedule: Schedule) -> Array:
    """The values, of which those that are beyond an end of the schedule by no more than float32 rounds, as -log(sigmas) of other
    tools are, are that end."""
    moved = np.clip(values, schedule.lam_min, schedule.lam_max)
    return np.where(np.isfinite(values) & np.isclose(values, moved, rtol=2e-6, atol=2e-6), moved, values)


def default(schedule: Schedule) -> str:
    """The name of the grid that is used if none is given: logsnr, or time where the schedule begins or ends at λ = ±∞."""
    return "logsnr" if np.isfinite([schedule.lam_min, schedule.lam_max]).all() else "time"


def tau(name: str, schedule: Schedule, steps: int) -> Array:
    """The distinct λ of τ for S = `steps`, and λ = +∞: a grid of S steps, or of as many as τ has distinct labels.

    name: tau-linear or tau-quadratic. InputError for a schedule without labels, and for fewer than 2 steps.
    """
    choice("name", name, TAUS)
    if whole("steps", steps, 1, MOST_STEPS) < 2:
        raise InputError(f"{name} with {steps} steps begins at label 0, where there is no noise: use 2 or more")
    if schedule.knots is None:
        raise InputError(f"{name} is made of labels, and the schedule {schedule.name} is continuous: use time or quadratic")
    return check([*schedule.lam(np.unique(TAUS[name](len(schedule.knots), steps))[::-1]), np.inf])


def _tau_of_steps(name: str, schedule: Schedule, steps: int, denoise: bool) -> Array:
    """τ if it has exactly `steps` labels, else InputError.

    The authors' code takes more than S steps where T // S does not divide T, and evaluates label 0 and others more than once,
    without effect, where the squares are close.
    """
    if not denoise:
        raise InputError(f"{name} ends with a step from its first label to σ = 0, as in the paper: give denoise=True")
    values = tau(name, schedule, steps)
    if (found := len(values) - 1) != steps:
        assert schedule.knots is not None
        labels = len(schedule.knots)
        fits = [n for n in range(2, labels + 1) if len(set(TAUS[name](labels, n))) == n]
        nearest = [n for n in fits if n < steps][-1:] + [n for n in fits if n > steps][:1]
        raise InputError(
            f"{name} with S = {steps} has {found} different labels of {labels}: take {' or '.join(map(str, nearest))} steps, "
            "or the list of λ that grid.tau gives"
        )
    return values


def check(values: ArrayLike) -> Array:
    """The values as a grid; InputError unless there are two or more, strictly increasing (λ = +∞ only as the last)."""
    array = numbers("grid", values, MOST_STEPS + 2, least=2)
    if not np.all(array[1:] > array[:-1]):
        raise InputError(
            "a grid is two or more strictly increasing values of λ, noisy to clean, not "
            f"{np.array2string(array, precision=4, threshold=8, max_line_width=500)}"
        )
    return array


def name_of(lams: Sequence[float], schedule: Schedule, *, denoise: bool = False) -> str:
    """The name of the grid of a schedule that has these finite λ, to 1e-6, snapped to labels or not; "listed" if none has.

    denoise: whether the step to λ = +∞ follows. Two values are those of every grid, "of both ends alone".
    """
    if len(lams) <= 2:
        return "of both ends alone"
    for name in (*GRIDS, *TAUS):
        with suppress(InputError):  # no such grid, or none on labels
            if name in TAUS:
                made = tau(name, schedule, len(lams) - 1 + denoise)
            else:
                made = make(name, schedule, len(lams) - 1 + denoise, denoise=denoise)
            if _begins(made, lams) or _begins(snap(made, schedule), lams):
                return name
    return "listed"


def _begins(grid: Array, lams: Sequence[float]) -> bool:
    """Whether a grid begins with these λ, to 1e-6."""
    return len(grid) >= len(lams) and np.allclose(grid[: len(lams)], lams, rtol=0, atol=1e-6)


def load(path: str | Path) -> list[float]:
    """The λ of a file, a JSON object with a list `lam`, as experiments.comparison.optimal_grid writes it; `make` checks them.

    InputError for a file that is absent or holds no such list.
    """
    expected = '{"lam": [-5, -2, 0, 2, 4.6]} or more, as python -m experiments.comparison.optimal_grid writes it'
    with reading(path, "grid", expected):
        lam = parse_json(read_bytes(path, MOST_JSON))["lam"]
        if not isinstance(lam, list) or not lam or any(type(value) not in (int, float) for value in lam):
            raise InputError(f"its lam is {shown(lam)}")
        return [float(value) for value in lam]


def snap(grid: Array, schedule: Schedule) -> Array:
    """Each finite λ moved to the nearest label that the network was trained on; InputError where two meet.

    For networks that take whole labels. Plan after this, so that label and coefficients stay together.
    """
    if schedule.knots is None:
        raise InputError(f"the schedule {schedule.name} is continuous: there is nothing to snap to")
    grid = numbers("grid", grid, MOST_STEPS + 2)
    finite = grid < np.inf
    labels = np.round(schedule.t(grid[finite]))
    unique, counts = np.unique(labels, return_counts=True)
    if len(unique) < len(labels):
        raise InputError(
            f"{len(labels)} grid values fall on {len(unique)} labels (label {unique[counts.argmax()]:g} twice): "
            "use fewer steps, or another grid"
        )
    return np.concatenate([schedule.lam(labels), grid[~finite]])
