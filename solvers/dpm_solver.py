"""DPM-Solver (Lu et al., 2022a) and DPM-Solver++ (Lu et al., 2022b): exponential integrators in λ.

In noise form the equation is d(x/α)/dλ = −e^(−λ) ε, in data form d(x/σ)/dλ = e^λ x̂0: exponential integrators with
A = +1 and −1. A stage at s + r h is a transfer with weights in φ_k(±r h); see phi.py.
"""

from __future__ import annotations

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.ddim import closed
from solvers.phi import phi
from solvers.plan import Plan
from solvers.transfer import ramp, stage, start

A = {"noise": 1.0, "data": -1.0}


def dpm1(grid: Array, schedule: Schedule) -> Plan:
    """DPM-Solver-1 (Lu et al., 2022a, Eq. 3.7), which is DDIM; one evaluation a step."""
    steps = zip(grid[:-1], grid[1:], strict=True)
    stages = [
        start(grid),
        *(stage(schedule.path, "noise", lam_s, lam_t, {i: 1.0}) for i, (lam_s, lam_t) in enumerate(steps)),
    ]
    return Plan("dpm1", schedule.path, "noise", closed(stages))


def dpm2(grid: Array, schedule: Schedule, *, r1: float = 0.5) -> Plan:
    """DPM-Solver-2 (Lu et al., 2022a, Algorithm 4): a stage at λ_s + r1 h, then ε_s + (ε_1 − ε_s)/(2 r1); two evaluations a step."""
    if not 0 < r1 < 1:
        raise InputError(f"r1 of dpm2 must be between 0 and 1, both excluded, not {r1:g}")
    path, form = schedule.path, "noise"
    stages, e = [start(grid)], 0
    for lam_s, lam_t, order in zip(grid[:-1], grid[1:], single_orders(grid, 2), strict=True):
        weights = {e: 1.0}
        if order == 2:
            stages.append(stage(path, form, lam_s, lam_s + r1 * (lam_t - lam_s), weights, commit=False))
            weights = {e: 1 - 1 / (2 * r1), e + 1: 1 / (2 * r1)}
        stages.append(stage(path, form, lam_s, lam_t, weights))
        e += order
    return Plan("dpm2", path, form, closed(stages))


def dpm3(grid: Array, schedule: Schedule, *, r1: float = 1 / 3, r2: float = 2 / 3) -> Plan:
    """Third-order single steps with stages at λ_s + r1 h and λ_s + r2 h; three evaluations a step.

    With r2 = 2/3 this is DPM-Solver-3 (Lu et al., 2022a, Algorithm 5). That algorithm is of order 3 for no other r2; here any
    pair is, by the family it belongs to (Hochbruck and Ostermann, 2005, Eq. 5.8): the weight of ε_1 in the last row is
    γ times that of ε_2, with 2 (γ r1 + r2) = 3 (γ r1² + r2²). InputError where this has no solution (r1 = 2/3 ≠ r2).
    """
    if not (0 < r1 < 1 and 0 < r2 <= 1 and r1 != r2):
        raise InputError(f"dpm3 needs 0 < r1 < 1 and 0 < r2 ≤ 1, different from each other, not {r1:g} and {r2:g}")
    exact = abs(r2 - 2 / 3) < 1e-12
    if not exact and abs(r1 - 2 / 3) < 1e-3:
        raise InputError(f"dpm3 has no third-order formula for r1 = {r1:g} with r2 = {r2:g}: take r1 away from 2/3, or r2 = 2/3")
    gamma = 0.0 if exact else r2 * (2 - 3 * r2) / (r1 * (3 * r1 - 2))
    path, form = schedule.path, "noise"
    stages, e = [start(grid)], 0
    for lam_s, lam_t, order in zip(grid[:-1], grid[1:], single_orders(grid, 3), strict=True):
        weights = {e: 1.0}
        if order == 3:
            h = lam_t - lam_s
            one, two, whole = (r * h * A[form] for r in (r1, r2, 1.0))
            a = (gamma * r1 * phi(2, one) + r2**2 / r1 * phi(2, two)) / (r2 * phi(1, two))
            b = phi(2, whole) / (gamma * r1 + r2) / phi(1, whole)
            stages.append(stage(path, form, lam_s, lam_s + r1 * h, weights, commit=False))
            stages.append(stage(path, form, lam_s, lam_s + r2 * h, {e: 1 - a, e + 1: a}, commit=False))
            weights = {e: 1 - b - gamma * b, e + 1: gamma * b, e + 2: b}
        stages.append(stage(path, form, lam_s, lam_t, weights))
        e += order
    return Plan("dpm3", path, form, closed(stages))


def dpmpp2m(grid: Array, schedule: Schedule) -> Plan:
    """DPM-Solver++(2M) (Lu et al., 2022b, Algorithm 2): x̂0 extrapolated by (1 + 1/(2r), −1/(2r)), r = h_prev/h; one evaluation a step."""
    h = np.diff(grid)
    stages = [start(grid)]
    for i, order in enumerate(ramp(grid, 2)):
        slope = h[i] / (2 * h[i - 1]) if order == 2 else 0.0
        stages.append(stage(schedule.path, "data", grid[i], grid[i + 1], {i: 1 + slope, i - 1: -slope}))
    return Plan("dpmpp2m", schedule.path, "data", closed(stages))


def single_orders(grid: Array, order: int) -> list[int]:
    """The order of each single step: `order`, but 1 where a step has no finite length."""
    return [order if np.isfinite(h) else 1 for h in np.diff(grid)]
