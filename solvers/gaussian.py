"""A plan on Gaussian data, as exact arithmetic.

For x0 ~ N(0, s²) the model is linear in the state, so a plan maps its first state and its draws z_1, z_2, ... linearly to its
last state. The output is N(0, v) with v a sum of squares: what a stochastic solver does to a distribution, without Monte Carlo.
"""

from __future__ import annotations

import numpy as np

from diffode.prediction import CONSTANT
from diffode.schedule import Array
from solvers.plan import Plan, value


def variance(plan: Plan, s: float) -> float:
    """The variance of the plan's output for data N(0, s²), from a first state that is exactly N(0, α² s² + σ²)."""
    output = coefficients(plan, s)
    return float(output @ output)


def coefficients(plan: Plan, s: float) -> Array:
    """The plan's output for data N(0, s²) as coefficients of x_T/std(x_T) and of the draws 1, 2, ...: (1 + draws,)."""
    path, p = plan.path, CONSTANT[plan.prediction]
    draws = 1 + max((stage.draw or 0 for stage in plan.stages), default=0)
    anchor = np.zeros(draws)  # states as coefficients of x_T and of the draws, each N(0, 1)
    m: list[Array] = []
    anchor[0] = np.sqrt(exact(plan, plan.stages[0].lam, s))
    for stage in plan.stages:
        u = value(stage.x) * anchor + sum((value(c) * m[j] for j, c in stage.c.items()), np.zeros(draws))
        u[stage.draw or 0] += value(stage.noise)
        if stage.evaluate:
            alpha, sigma = path.at(stage.lam)
            m.append((p[0] * alpha * s**2 + p[1] * sigma) / exact(plan, stage.lam, s) * u)
        anchor = u if stage.commit else anchor
    return anchor


def exact(plan: Plan, lam: float, s: float) -> float:
    """The exact variance of the marginal at λ for data N(0, s²): α² s² + σ²."""
    alpha, sigma = plan.path.at(lam)
    return alpha**2 * s**2 + sigma**2
