"""DPM-Solver (Lu et al., 2022a) and DPM-Solver++ (Lu et al., 2022b): exponential integrators in λ.

In noise form the equation is d(x/α)/dλ = −e^(−λ) ε, in data form d(x/σ)/dλ = e^λ x̂0. Over a step of length h the exact
weights of ε (or x̂0) are moments of e^(±τ), so a stage at λ_s + r h is a transfer whose weights are ratios of φ_k(±r h); see
phi.py. Weights below are by evaluation within the step, 0 being the one at λ_s.
"""

from __future__ import annotations

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.phi import phi
from solvers.plan import Plan
from solvers.transfer import Rows, closed, ramp, single_steps, stage, start


def dpm1(grid: Array, schedule: Schedule) -> Plan:
    """DPM-Solver-1 (Lu et al., 2022a, Eq. 3.7), which is DDIM. One evaluation a step."""
    return single_steps("dpm1", grid, schedule, "noise", lambda h: [(1.0, {0: 1.0})])


def dpm2(grid: Array, schedule: Schedule, *, r1: float = 0.5) -> Plan:
    """DPM-Solver-2 (Lu et al., 2022a, Algorithm 4): a stage at λ_s + r1 h, then ε_s + (ε_1 − ε_s)/(2 r1).

    Two evaluations a step. InputError unless 0 < r1 ≤ 1.
    """
    if not 0 < r1 <= 1:
        raise InputError(f"r1 of dpm2 must be above 0 and at most 1, not {r1:g}")
    b = 1 / (2 * r1)
    return single_steps("dpm2", grid, schedule, "noise", lambda h: [(r1, {0: 1.0}), (1.0, {0: 1 - b, 1: b})])


def dpm3(grid: Array, schedule: Schedule, *, r1: float = 1 / 3, r2: float = 2 / 3) -> Plan:
    """Third-order single steps with stages at λ_s + r1 h and λ_s + r2 h. Three evaluations a step.

    With r2 = 2/3 this is DPM-Solver-3 (Lu et al., 2022a, Algorithm 5). That algorithm is of order 3 for no other r2; here
    any pair is, by the third-order family it belongs to (Hochbruck and Ostermann, 2005): the weight of ε_1 in the last row is
    γ times that of ε_2, with 2 (γ r1 + r2) = 3 (γ r1² + r2²). InputError where this has no solution (r1 = 2/3 ≠ r2).
    """
    if not (0 < r1 < 1 and 0 < r2 <= 1 and abs(r1 - r2) > 1e-3):
        raise InputError(f"dpm3 needs 0 < r1 < 1 and 0 < r2 ≤ 1, different from each other, not {r1:g} and {r2:g}")
    published = abs(r2 - 2 / 3) < 1e-6
    if not published and abs(r1 - 2 / 3) < 1e-3:
        raise InputError(f"dpm3 has no third-order formula for r1 = {r1:g} with r2 = {r2:g}: move r1, or take r2 = 2/3")
    gamma = 0.0 if published else r2 * (2 - 3 * r2) / (r1 * (3 * r1 - 2))

    def rows(h: float) -> Rows:
        a = (gamma * r1 * phi(2, r1 * h) + r2**2 / r1 * phi(2, r2 * h)) / (r2 * phi(1, r2 * h))
        b = phi(2, h) / phi(1, h) / (gamma * r1 + r2)
        return [(r1, {0: 1.0}), (r2, {0: 1 - a, 1: a}), (1.0, {0: 1 - (1 + gamma) * b, 1: gamma * b, 2: b})]

    return single_steps("dpm3", grid, schedule, "noise", rows)


def dpmpp2m(grid: Array, schedule: Schedule) -> Plan:
    """DPM-Solver++(2M) (Lu et al., 2022b, Algorithm 2): x̂0 extrapolated by (1 + 1/(2r), −1/(2r)), r = h_prev/h.

    One evaluation a step; the first step is of order 1.
    """
    h, stages = np.diff(grid), [start(grid)]
    for i, order in enumerate(ramp(grid, 2)):
        slope = h[i] / (2 * h[i - 1]) if order == 2 else 0.0
        stages.append(stage(schedule.path, "data", grid[i], grid[i + 1], {i: 1 + slope, i - 1: -slope}))
    return Plan("dpmpp2m", schedule.path, "data", closed(stages))
