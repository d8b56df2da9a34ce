"""Any explicit Runge–Kutta method as a Plan: rk:NAME, in σ̄ or in λ."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.butcher import ButcherTable
from solvers.plan import Plan, Stage
from solvers.singlestep import single_steps
from solvers.transfer import PlanBuilder


def runge_kutta(
    name: str, butcher: ButcherTable, grid: Array, schedule: Schedule, *, variable: str = "sigma_bar", prediction: str = "noise"
) -> Plan:
    """The plan of a Butcher table. As many evaluations a step as it has stages.

    variable "sigma_bar": on dy/dσ̄ = ε, y = x/α, which keeps the transfer law (prediction "data": on d(x/σ)/d(1/σ̄) = x̂0).
    variable "lam": on dy/dλ = −e^(−λ) ε; its rows keep a point mass to the order of the method only, and the plan is flagged.
    """
    if variable not in ("sigma_bar", "lam") or prediction not in ("noise", "data"):
        raise InputError(f"{name} takes variable sigma_bar or lam and prediction noise or data, not {variable!r}, {prediction!r}")
    if variable == "sigma_bar":
        return single_steps(name, grid, schedule, prediction, butcher.steps(prediction))
    if prediction != "noise" or not np.isfinite(grid).all():
        raise InputError(f"{name} in λ is in noise form and between finite ends: use --variable sigma_bar")
    return _in_lam(name, butcher, grid, schedule)


def _in_lam(name: str, butcher: ButcherTable, grid: Array, schedule: Schedule) -> Plan:
    builder, alpha = PlanBuilder(schedule.path, "noise", grid[0]), schedule.alpha
    for lam_s, lam_t in pairwise(grid):
        h, indices, where = lam_t - lam_s, [builder.evaluate()], [lam_s]
        for c, row in zip([*butcher.c[1:], 1.0], [*butcher.a, butcher.b], strict=True):
            lam = lam_t if c == 1 else lam_s + float(c) * h
            weights = {j: -float(alpha(lam)) * h * w * np.exp(-at) for j, at, w in zip(indices, where, row, strict=True)}
            last = len(indices) == len(butcher.b)
            builder.put(Stage(lam, float(alpha(lam) / alpha(lam_s)), weights, evaluate=False, commit=last))
            if not last:
                indices.append(builder.evaluate())
                where.append(lam)
    return builder.plan(name, exact_marginals=False)
