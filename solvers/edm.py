"""The samplers of EDM (Karras et al., 2022) and their relatives in k-diffusion, on any path: they step in σ̄ = σ/α."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.butcher import TABLES
from solvers.plan import Plan, Stage
from solvers.singlestep import single_steps, write_step
from solvers.transfer import PlanBuilder, refuse_backwards

HEUN = TABLES["heun2"].steps("noise")


def heun(grid: Array, schedule: Schedule) -> Plan:
    """Heun's method (the trapezoidal rule) in σ̄ = σ/α: the deterministic sampler of EDM.

        u   = (α_t/α_s) x_s + α_t (σ̄_t − σ̄_s) ε_s                          ε_s = ε(x_s, λ_s),    ε_t = ε(u, λ_t)
        x_t = (α_t/α_s) x_s + α_t (σ̄_t − σ̄_s) (ε_s + ε_t)/2

    Two evaluations per step; order 2. A step to σ = 0 (λ = +∞) is Euler's, x_t = x̂0, with one evaluation.

    Arguments:
        none besides the grid and the schedule.

    Reference:
        EDM (Karras et al., 2022), Algorithm 1.
    """
    return single_steps("heun", grid, schedule, "noise", HEUN)


def heun_churn(
    grid: Array,
    schedule: Schedule,
    *,
    s_churn: float = 40.0,
    s_tmin: float = 0.05,
    s_tmax: float = 50.0,
    s_noise: float = 1.0,
) -> Plan:
    """The stochastic sampler of EDM: noise is added before a step (churn), which Heun's method then takes from there.

        x̂   = (α̂/α_s) x_s + α̂ s_noise sqrt(σ̂² − σ̄_s²) z,      σ̂ = (1 + γ) σ̄_s,    γ = min(s_churn/steps, √2 − 1)
        x_t = Heun's step from x̂ to λ_t (see heun),             α̂ = α where σ/α = σ̂

    Two evaluations per step; weak order 2. Unlike EDM's code, σ̂ never exceeds the first σ̄ of the grid.

    Arguments:
        s_churn: how much noise is added, 0 or more; 0 is heun. Default 40.
        s_tmin, s_tmax: noise is added where σ̄_s is between them. Defaults 0.05 and 50.
        s_noise: a factor on the noise, above 0. Default 1; with any other (EDM for ImageNet-64: 1.003) the noise is not that of
            the forward process, and the plan has exact_marginals=False.

    Reference:
        EDM (Karras et al., 2022), Algorithm 2; the defaults of s_churn, s_tmin and s_tmax are its own for ImageNet-64.
    """
    if not (s_churn >= 0 and s_tmin >= 0 and s_tmax >= 0 and s_noise > 0):
        raise InputError(f"churn takes s_churn, s_tmin, s_tmax ≥ 0 and s_noise > 0, not {s_churn}, {s_tmin}, {s_tmax}, {s_noise}")
    refuse_backwards("heun-churn", grid, s_churn > 0)
    builder, gamma = PlanBuilder(schedule.path, "noise", grid[0]), min(s_churn / (len(grid) - 1), np.sqrt(2) - 1)
    for draw, (lam_s, lam_t) in enumerate(pairwise(grid), 1):
        lam_hat = max(lam_s - np.log1p(gamma), grid[0])
        if s_tmin <= np.exp(-lam_s) <= s_tmax and lam_hat < lam_s:
            noise = float(schedule.sigma(lam_hat)) * np.sqrt(-np.expm1(2 * (lam_hat - lam_s)))
            x = float(schedule.alpha(lam_hat) / schedule.alpha(lam_s))
            builder.put(Stage(lam_hat, x, noise=noise * s_noise, draw=draw, evaluate=False))
        write_step(builder, builder.evaluate(), lam_t, HEUN)
    return builder.plan("heun-churn", exact_marginals=s_noise == 1)
