"""What several experiments of the paper share: whole steps within a budget, and a mean with its standard error."""

from __future__ import annotations

import math

from torch import Tensor

from diffode.errors import InputError
from diffode.model import EpsModel
from solvers import Budget, Prepared, find


def prepare_whole_steps(solver: str, model: EpsModel, nfe: int, grid: str, *, backwards: bool = False) -> Prepared:
    """The solver with as many steps on the grid as nfe evaluations allow, from clean to noisy if backwards.

    InputError for a solver whose cost is not known beforehand, or is more than that.
    """
    found = find(solver)
    per_step = found.nfe_per_step or 1
    if nfe < per_step:
        raise InputError(f"{solver} spends at least {per_step} evaluations, those of one step, and cannot be compared at {nfe}")
    budget = Budget(steps=nfe // per_step, grid=grid)
    prepared = found.prepare(budget, model.schedule, labels_only=model.clock == "label", backwards=backwards)
    if prepared.nfe is None or prepared.nfe > nfe:
        spent = "no fixed number of" if prepared.nfe is None else prepared.nfe
        raise InputError(f"{solver} spends {spent} evaluations on {budget.steps} steps, and cannot be compared at {nfe}")
    return prepared


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of values (n,), and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))
