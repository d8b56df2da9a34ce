"""The samplers of EDM (Karras et al., 2022) and their relatives in k-diffusion, on any path: they step in σ̄ = σ/α."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.butcher import TABLES
from solvers.plan import Plan, Stage
from solvers.singlestep import Rows, single_steps, step
from solvers.transfer import PlanBuilder, refuse_backwards

HEUN = TABLES["heun2"].steps("noise")


def heun(grid: Array, schedule: Schedule) -> Plan:
    """Heun's method in σ̄ (Karras et al., 2022, Algorithm 1), by Euler to σ = 0. Two evaluations a step."""
    return single_steps("heun", grid, schedule, "noise", HEUN)


def kdpm2(grid: Array, schedule: Schedule) -> Plan:
    """DPM2 of k-diffusion: a stage at the geometric mean of σ̄, whose ε carries the step. It is dpm2. Two evaluations a step."""

    def geometric(h: float) -> Rows:
        return [(0.5, {0: 1.0}), (1.0, {1: 1.0})]

    return single_steps("kdpm2", grid, schedule, "noise", geometric)


def heun_churn(
    grid: Array,
    schedule: Schedule,
    *,
    s_churn: float = 40.0,
    s_tmin: float = 0.05,
    s_tmax: float = 50.0,
    s_noise: float = 1.0,
) -> Plan:
    """The stochastic sampler of EDM (Algorithm 2): before a step with σ̄ in [s_tmin, s_tmax], noise is added up to (1 + γ) σ̄,
    γ = min(s_churn/steps, √2 − 1). Two evaluations a step, at the noisier state.

    Noise never goes beyond the first σ̄ of the grid, where the model ends. With s_noise ≠ 1 the noise is not that of the forward
    process, and the plan is flagged. (EDM's own for ImageNet-64: 40, 0.05, 50 and 1.003.)
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
        step(builder, builder.evaluate(), lam_t, HEUN)
    return builder.plan("heun-churn", exact_marginals=s_noise == 1)
