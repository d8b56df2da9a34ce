"""Single steps: methods that use no evaluation of an earlier step. Each step is a list of rows, and a plan is all of them.

The rows of the exponential integrators depend on z alone: z = h in noise form, where d(x/α)/dλ = −e^(−λ) ε, and z = −h in data
form, where d(x/σ)/dλ = e^λ x̂0. The weights of a stage at λ_s + r h are ratios of φ_k(r z); see phi.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffode.schedule import Array, Schedule
from solvers.phi import phi
from solvers.plan import Plan
from solvers.transfer import PlanBuilder

Rows = list[tuple[float, dict[int, float]]]  # one per stage at λ_s + r h: (r, index of an evaluation of this step -> its weight)
Method = Callable[[float], Rows]  # h -> the rows of a step of length h; those below take z = SIGN · h
SIGN = {"noise": 1.0, "data": -1.0}  # z = SIGN · h


def first(z: float) -> Rows:
    """The exponential Euler step: one weight, 1, for any z. It is DDIM."""
    return [(1.0, {0: 1.0})]


def second(z: float, r1: float = 0.5, variant: str = "midpoint") -> Rows:
    """Two stages: m_0 + b (m_1 − m_0) with m_1 at λ_s + r1 h, and b = SLOPES[variant](z)/r1. DPM-Solver-2."""
    b = SLOPES[variant](z) / r1
    return [(r1, {0: 1.0}), (1.0, {0: 1 - b, 1: b})]


def third(z: float, r1: float = 1 / 3, r2: float = 2 / 3) -> Rows:
    """Three stages: m_0 + b (m_2 − m_0) + γ b (m_1 − m_0) with m_i at λ_s + r_i h, and 2 (γ r1 + r2) = 3 (γ r1² + r2²).

    r2 = 2/3 gives γ = 0, DPM-Solver-3. The family is that of Hochbruck and Ostermann (2005).
    """
    gamma = 0.0 if abs(r2 - 2 / 3) < 1e-6 else r2 * (2 - 3 * r2) / (r1 * (3 * r1 - 2))
    a = (gamma * r1 * phi(2, r1 * z) + r2**2 / r1 * phi(2, r2 * z)) / (r2 * phi(1, r2 * z))
    b = phi(2, z) / phi(1, z) / (gamma * r1 + r2)
    return [(r1, {0: 1.0}), (r2, {0: 1 - a, 1: a}), (1.0, {0: 1 - (1 + gamma) * b, 1: gamma * b, 2: b})]


# The weight of the slope m' over a step with two evaluations. "taylor" is exact; the others tend to it for h → 0.
SLOPES: dict[str, Callable[[float], float]] = {
    "taylor": lambda z: phi(2, z) / phi(1, z),
    "midpoint": lambda z: 0.5,
    "bh1": lambda z: 0.5 / phi(1, z),
    "bh2": lambda z: 0.5,
}


def write_step(builder: PlanBuilder, evaluation: int, lam_t: float, method: Method) -> None:
    """Write one step to λ_t: `evaluation` is the index of the one at the anchor. The last row commits and does not evaluate.

    A step from λ = −∞ or to λ = +∞ is of order 1, whatever the method.
    """
    lam_s, indices = builder.lam, [evaluation]
    h = lam_t - lam_s
    rows = method(h) if np.isfinite(h) else first(h)
    for r, weights in rows:
        builder.move(
            lam_t if r == 1 else lam_s + r * h,
            {indices[j]: w for j, w in weights.items()},
            commit=len(indices) == len(rows),
        )
        if len(indices) < len(rows):
            indices.append(builder.evaluate())


def single_steps(solver: str, grid: Array, schedule: Schedule, prediction: str, rows: Method | Sequence[Method]) -> Plan:
    """The plan of a method, or of one method per step: rows(h) are the stages of a step of length h; the last commits."""
    first_lam, *lams = grid.tolist()
    builder = PlanBuilder(schedule.path, prediction, first_lam)
    for i, lam_t in enumerate(lams):
        write_step(builder, builder.evaluate(), lam_t, rows if callable(rows) else rows[i])
    return builder.plan(solver)
