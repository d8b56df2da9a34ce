"""Any explicit Runge–Kutta method as a Plan: rk:NAME, in σ̄ = σ/α or in λ."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from diffode.checks import choice
from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.butcher import ButcherTable
from solvers.plan import Plan, Stage
from solvers.singlestep import single_steps
from solvers.transfer import PlanBuilder


def runge_kutta(
    name: str, butcher: ButcherTable, grid: Array, schedule: Schedule, *, variable: str = "sigma_bar", prediction: str = "noise"
) -> Plan:
    """An explicit Runge–Kutta method, given by its Butcher table a, b, c.

        x_t = (α_t/α_s) x_s + α_t (σ̄_t − σ̄_s) Σ_i b_i ε_i        ε_i = ε(u_i, σ̄_i),    σ̄_i = σ̄_s + c_i (σ̄_t − σ̄_s)
        u_i = (α_i/α_s) x_s + α_i (σ̄_t − σ̄_s) Σ_j a_ij ε_j       on dy/dσ̄ = ε, y = x/α

    As many evaluations per step as the table has stages; the order of the table.

    Arguments:
        variable: "sigma_bar" (default), as above, or "lam": on dy/dλ = −e^(−λ) ε, which carries a point mass to a point mass only
            to the order of the method, so that the plan has exact_marginals=False. It needs finite ends and prediction="noise".
        prediction: "noise" (default), as above, or "data": on d(x/σ)/d(1/σ̄) = x̂0.

    Reference:
        The source of the table; the tables are in solvers/butcher.py.
    """
    choice(f"the variable of {name}", variable, ("sigma_bar", "lam"))
    choice(f"the prediction of {name}", prediction, ("noise", "data"))
    if variable == "sigma_bar":
        return single_steps(name, grid, schedule, prediction, butcher.steps(prediction))
    if prediction != "noise" or not np.isfinite(grid).all():
        raise InputError(f'{name} in λ is in noise form and between finite ends: use variable="sigma_bar"')
    return _in_lam(name, butcher, grid, schedule)


def _in_lam(name: str, butcher: ButcherTable, grid: Array, schedule: Schedule) -> Plan:
    """The rows on dy/dλ = −e^(−λ) ε, with one exponential per stage."""
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
