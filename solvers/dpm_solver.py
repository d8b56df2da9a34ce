"""DPM-Solver (Lu et al., 2022a) and DPM-Solver++ (Lu et al., 2022b), single steps: exponential integrators in λ.

The two have the same rows (singlestep.py), in noise form with z = h, in data form with z = −h. Below, h = λ_t − λ_s,
φ_1(z) = (e^z − 1)/z and φ_2(z) = (φ_1(z) − 1)/z.
"""

from __future__ import annotations

from diffode.checks import choice
from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.plan import Plan
from solvers.singlestep import first, second, single_steps, third


def dpm2(grid: Array, schedule: Schedule, *, r1: float = 0.5, variant: str = "midpoint") -> Plan:
    """DPM-Solver-2: a second-order exponential step on ε, with one stage inside the step, at λ_1 = λ_s + r1 h.

        u   = (α_1/α_s) x_s − σ_1 (e^(r1 h) − 1) ε_s                        ε_s = ε(x_s, λ_s),    ε_1 = ε(u, λ_1)
        x_t = (α_t/α_s) x_s − σ_t (e^h − 1) (ε_s + b (ε_1 − ε_s))           h = λ_t − λ_s

    Two evaluations per step; order 2.

    Arguments:
        r1: where the stage is, 0 < r1 ≤ 1. Default 0.5, where b = 1 and ε_1 alone carries the step.
        variant: "midpoint" (default) is b = 1/(2 r1); "taylor" is b = φ_2(h)/(r1 φ_1(h)), exact for an ε that is linear in λ.

    Reference:
        DPM-Solver (Lu et al., 2022a), Algorithm 4, for "midpoint"; φ_k as in solvers/phi.py.
    """
    _check_second("dpm2", r1, variant)
    return single_steps("dpm2", grid, schedule, "noise", lambda h: second(h, r1, variant))


def dpm3(grid: Array, schedule: Schedule, *, r1: float = 1 / 3, r2: float = 2 / 3) -> Plan:
    """DPM-Solver-3: a third-order exponential step on ε, with stages at λ_i = λ_s + r_i h, i = 1, 2.

        u_1 = (α_1/α_s) x_s − σ_1 (e^(r1 h) − 1) ε_s                        ε_i = ε(u_i, λ_i),    h = λ_t − λ_s
        u_2 = (α_2/α_s) x_s − σ_2 (e^(r2 h) − 1) (ε_s + a (ε_1 − ε_s))      a = r2 φ_2(r2 h)/(r1 φ_1(r2 h))    for r2 = 2/3
        x_t = (α_t/α_s) x_s − σ_t (e^h − 1) (ε_s + b (ε_2 − ε_s))           b = φ_2(h)/(r2 φ_1(h))             for r2 = 2/3

    Three evaluations per step; order 3 for any r1 and r2. The published algorithm is of order 3 for r2 = 2/3 only; for other r2
    the weights are those of the third-order family that contains it (`singlestep.third`).

    Arguments:
        r1, r2: where the stages are, 0 < r1 < 1 and 0 < r2 ≤ 1, unequal. Defaults 1/3 and 2/3. InputError for r1 = 2/3 ≠ r2.

    Reference:
        DPM-Solver (Lu et al., 2022a), Algorithm 5; the family is that of Hochbruck and Ostermann (2005).
    """
    _check_third("dpm3", r1, r2)
    return single_steps("dpm3", grid, schedule, "noise", lambda h: third(h, r1, r2))


def dpmpp2s(grid: Array, schedule: Schedule, *, r1: float = 0.5, variant: str = "midpoint") -> Plan:
    """DPM-Solver++(2S): dpm2 in data form, with one stage inside the step, at λ_1 = λ_s + r1 h.

        u   = (σ_1/σ_s) x_s − α_1 (e^(−r1 h) − 1) m_s                       m_s = x̂0(x_s, λ_s),    m_1 = x̂0(u, λ_1)
        x_t = (σ_t/σ_s) x_s − α_t (e^(−h) − 1) (m_s + b (m_1 − m_s))        h = λ_t − λ_s

    Two evaluations per step; order 2.

    Arguments:
        r1: where the stage is, 0 < r1 ≤ 1. Default 0.5, where b = 1 and m_1 alone carries the step.
        variant: "midpoint" (default) is b = 1/(2 r1); "taylor" is b = φ_2(−h)/(r1 φ_1(−h)), exact for an x̂0 that is linear in λ.

    Reference:
        DPM-Solver++ (Lu et al., 2022b), Algorithm 1, for "midpoint"; φ_k as in solvers/phi.py.
    """
    _check_second("dpmpp2s", r1, variant)
    return single_steps("dpmpp2s", grid, schedule, "data", lambda h: second(-h, r1, variant))


def dpmpp3s(grid: Array, schedule: Schedule, *, r1: float = 1 / 3, r2: float = 2 / 3) -> Plan:
    """DPM-Solver++(3S): dpm3 in data form, with stages at λ_i = λ_s + r_i h, i = 1, 2.

        u_1 = (σ_1/σ_s) x_s − α_1 (e^(−r1 h) − 1) m_s                       m_i = x̂0(u_i, λ_i),    h = λ_t − λ_s
        u_2 = (σ_2/σ_s) x_s − α_2 (e^(−r2 h) − 1) (m_s + a (m_1 − m_s))     a = r2 φ_2(−r2 h)/(r1 φ_1(−r2 h))   for r2 = 2/3
        x_t = (σ_t/σ_s) x_s − α_t (e^(−h) − 1) (m_s + b (m_2 − m_s))        b = φ_2(−h)/(r2 φ_1(−h))            for r2 = 2/3

    Three evaluations per step; order 3 for any r1 and r2 (for r2 ≠ 2/3 with the weights of `singlestep.third`).

    Arguments:
        r1, r2: where the stages are, 0 < r1 < 1 and 0 < r2 ≤ 1, unequal. Defaults 1/3 and 2/3. InputError for r1 = 2/3 ≠ r2.

    Reference:
        DPM-Solver (Lu et al., 2022a), Algorithm 5, in the data form of DPM-Solver++ (Lu et al., 2022b).
    """
    _check_third("dpmpp3s", r1, r2)
    return single_steps("dpmpp3s", grid, schedule, "data", lambda h: third(-h, r1, r2))


def dpm_fast(grid: Array, schedule: Schedule, *, tail: int = 1) -> Plan:
    """DPM-Solver-fast: steps of dpm3, and shorter ones at the end, so that any number of evaluations K can be spent.

        x_t = (α_t/α_s) x_s − σ_t (e^h − 1) Σ_j w_j ε_j,      w_j as in dpm3, dpm2 or ddim,    h = λ_t − λ_s
        orders of the steps: 3, ..., 3, 2, 1 (tail 0)    3, ..., 3, 1 (tail 1)    3, ..., 3, 2 (tail 2)

    Three evaluations per step of order 3; K // 3 + 1 steps spend K. Order 2, or 3 with tail 2. A last step to λ = +∞ comes after
    these and is of order 1.

    Arguments:
        tail: K mod 3, which says how the plan ends: 0, 1 (default) or 2. With `nfe` given, `sample` chooses it.

    Reference:
        DPM-Solver (Lu et al., 2022a), appendix.
    """
    if tail not in (0, 1, 2):
        raise InputError(f"the tail of dpm-fast is 0, 1 or 2, the evaluations beyond a multiple of 3, not {tail}")
    steps = len(grid) - 1 - int(grid[-1] == float("inf"))
    if 0 < steps < 1 + (tail == 0):
        raise InputError(f"dpm-fast with tail {tail} needs {1 + (tail == 0)} finite steps or more, not {steps}")
    end = {0: [2, 1], 1: [1], 2: [2]}[tail] if steps else []
    orders = [3] * (steps - len(end)) + end + [1]
    methods = {1: first, 2: second, 3: third}
    return single_steps("dpm-fast", grid, schedule, "noise", [methods[order] for order in orders])


def _check_second(solver: str, r1: float, variant: str) -> None:
    choice(f"the variant of {solver}", variant, ("midpoint", "taylor"))
    if not 0 < r1 <= 1:
        raise InputError(f"r1 of {solver} must be above 0 and at most 1, not {r1:g}")


def _check_third(solver: str, r1: float, r2: float) -> None:
    if not (0 < r1 < 1 and 0 < r2 <= 1 and abs(r1 - r2) > 1e-3):
        raise InputError(f"{solver} needs 0 < r1 < 1 and 0 < r2 ≤ 1, different from each other, not {r1:g} and {r2:g}")
    if abs(r2 - 2 / 3) >= 1e-6 and abs(r1 - 2 / 3) < 1e-3:
        raise InputError(f"{solver} has no third-order formula for r1 = {r1:g} with r2 = {r2:g}: move r1, or take r2 = 2/3")
