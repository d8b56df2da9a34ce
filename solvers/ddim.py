"""DDIM and DDPM: first-order steps that differ in the noise alone.

With h = λ_t − λ_s and the transfer law, the steps of Song et al. (2021a), Eq. 12, and of Ho et al. (2020), Algorithm 2, are

    ddim   n = η σ_t sqrt(1 − e^(−2h))        Eq. 16; η = 0 is the ODE, η = 1 is DDPM with σ² = β̃
    ddpm   n = σ_t sqrt(1 − e^(−2h))          σ² = β̃_t, "small"
           n = σ_s sqrt(1 − e^(−2h))          σ² = β_t, "large": the σ̂ of Song et al.; the mean is that of β̃

and `ddim_family` takes any n (diffode/ddim_family.py). The last rule adds more noise than its mean allows, so its marginals are
not those of the forward process, and its plan has exact_marginals=False. A step to λ = +∞ adds no noise, as in both papers' code;
only `ddim_family` can add some there. First-order steps are the same in noise and in data form. They are planned in noise form,
except on a grid that begins at α = 0, where only the data form is finite.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from diffode.checks import choice
from diffode.ddim_family import Family, noise_hat, noise_of_eta
from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.plan import Plan
from solvers.transfer import PlanBuilder, refuse_backwards


def ddim(grid: Array, schedule: Schedule, *, eta: float = 0.0) -> Plan:
    """DDIM: Euler's method for the probability-flow ODE in σ̄ = σ/α, with fresh noise if η > 0.

        x_t = α_t x̂0 + sqrt(σ_t² − n²) ε + n z,      n = η σ_t sqrt(1 − e^(−2h)),    h = λ_t − λ_s

    x̂0 and ε are predicted at x_s, and z ~ N(0, I). One evaluation per step; order 1 (in distribution, if η > 0).

    Arguments:
        eta: the noise η, from 0 (default: the ODE, deterministic) to 1 (ancestral sampling: ddpm).

    Reference:
        DDIM (Song et al., 2021a), Eqs. 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"η of ddim must be between 0 and 1, not {eta:g}")
    refuse_backwards("ddim", grid, eta > 0)
    noise = noise_of_eta(grid, schedule, eta)
    return _first_order("ddim", grid, schedule, noise, noise)


def ddpm(grid: Array, schedule: Schedule, *, variance: str = "small") -> Plan:
    """DDPM: ancestral sampling, on the whole chain or on any sub-sequence of it.

        x_t = α_t x̂0 + σ_t e^(−h) ε + n z,      n = σ_t sqrt(1 − e^(−2h)) or σ_s sqrt(1 − e^(−2h)),    h = λ_t − λ_s

    x̂0 and ε are predicted at x_s, and z ~ N(0, I). One evaluation per step; weak order 1.

    Arguments:
        variance: "small" (default) adds the posterior variance σ² = β̃, the first n; "large" adds σ² = β, the second n, which is
            more than the forward process has left at λ_t, so the plan has exact_marginals=False.

    Reference:
        DDPM (Ho et al., 2020), Algorithm 2; "large" is the σ̂ of DDIM (Song et al., 2021a).
    """
    choice("the variance of ddpm", variance, ("small", "large"))
    refuse_backwards("ddpm", grid, True)
    noise = noise_of_eta(grid, schedule, 1.0)
    added = noise if variance == "small" else np.where(grid[1:] < np.inf, noise_hat(grid, schedule), 0.0)
    return _first_order("ddpm", grid, schedule, noise, added)


def ddim_family(grid: Array, schedule: Schedule, noise: Sequence[float] | Array) -> Plan:
    """DDIM with any noise: the generative process of q_σ for any σ that the DDIM paper allows.

        x_t = α_t x̂0 + sqrt(σ_t² − n²) ε + n z,      0 ≤ n ≤ σ_t, one n per step

    One evaluation per step, each of first order. A last step to λ = +∞ draws from N(x̂0, n² I): with n > 0 that is not the
    distribution of the data, and the plan has exact_marginals=False. Give the plan to `sample`, or save it for the command line.
    InputError for noise outside its range, see `Family`.

    Arguments:
        noise: the paper's σ, that is n, for each step of the grid: (steps,), in the order of the grid.

    Reference:
        DDIM (Song et al., 2021a), Eqs. 7 and 10.
    """
    q = Family(grid, schedule, noise)
    return _first_order("ddim-family", q.grid, schedule, np.where(q.grid[1:] < np.inf, q.noise, 0.0), q.noise)


def _first_order(solver: str, grid: Array, schedule: Schedule, noise: Array, added: Array) -> Plan:
    """First-order steps whose mean leaves room for noise of std `noise`, and whose noise has std `added`: both (steps,)."""
    builder = PlanBuilder(schedule.path, "noise" if grid[0] > -np.inf else "data", grid[0])
    for lam, n in zip(grid[1:], noise, strict=True):
        builder.move(lam, {builder.evaluate(): 1.0}, noise=n, draw=len(builder.stages))
    for i, n in enumerate(added, 1):
        builder.stages[i] = dataclasses.replace(builder.stages[i], noise=n, draw=i if n else None)
    return builder.plan(solver, exact_marginals=np.array_equal(noise, added))
