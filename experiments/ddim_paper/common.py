"""What several experiments of the paper share: whole steps within a budget, and a mean with its standard error."""

from __future__ import annotations

import math

from torch import Tensor

from diffode import grid as grids
from diffode.errors import InputError
from diffode.schedule import Schedule
from solvers.registry import find


def whole_steps(solver: str, schedule: Schedule, nfe: int, grid: str) -> int:
    """The steps that a solver takes with nfe evaluations at most; InputError if their number does not say what it costs."""
    entry = find(solver)
    steps = nfe // (entry.nfe_per_step or 1)
    spent = entry.on(grids.make(grid, schedule, steps), schedule).nfe or 0
    if spent > nfe:
        raise InputError(f"{solver} spends {spent} evaluations on {steps} steps, and cannot be compared at {nfe}")
    return steps


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of values (n,), and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))
