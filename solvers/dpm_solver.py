"""DPM-Solver (Lu et al., 2022a) and DPM-Solver++ (Lu et al., 2022b), single steps: exponential integrators in λ.

The two are the same rows (singlestep.py), in noise form with z = h, in data form with z = −h.
"""

from __future__ import annotations

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.plan import Plan
from solvers.singlestep import check_variant, first, second, single_steps, third


def dpm1(grid: Array, schedule: Schedule) -> Plan:
    """DPM-Solver-1 (Lu et al., 2022a, Eq. 3.7), which is DDIM. One evaluation a step."""
    return single_steps("dpm1", grid, schedule, "noise", first)


def dpm2(grid: Array, schedule: Schedule, *, r1: float = 0.5, variant: str = "midpoint") -> Plan:
    """DPM-Solver-2 (Lu et al., 2022a, Algorithm 4): a stage at λ_s + r1 h, then ε_s + (ε_1 − ε_s)/(2 r1).

    Two evaluations a step. InputError unless 0 < r1 ≤ 1.
    """
    _check_second("dpm2", r1, variant)
    return single_steps("dpm2", grid, schedule, "noise", lambda h: second(h, r1, variant))


def dpm3(grid: Array, schedule: Schedule, *, r1: float = 1 / 3, r2: float = 2 / 3) -> Plan:
    """Third-order single steps with stages at λ_s + r1 h and λ_s + r2 h. Three evaluations a step.

    With r2 = 2/3 this is DPM-Solver-3 (Lu et al., 2022a, Algorithm 5). That algorithm is of order 3 for no other r2; here
    any pair is, by the third-order family it belongs to. InputError where that has no solution (r1 = 2/3 ≠ r2).
    """
    _check_third("dpm3", r1, r2)
    return single_steps("dpm3", grid, schedule, "noise", lambda h: third(h, r1, r2))


def dpmpp2s(grid: Array, schedule: Schedule, *, r1: float = 0.5, variant: str = "midpoint") -> Plan:
    """DPM-Solver++(2S) (Lu et al., 2022b, Algorithm 1): dpm2 in data form. Two evaluations a step."""
    _check_second("dpmpp2s", r1, variant)
    return single_steps("dpmpp2s", grid, schedule, "data", lambda h: second(-h, r1, variant))


def dpmpp3s(grid: Array, schedule: Schedule, *, r1: float = 1 / 3, r2: float = 2 / 3) -> Plan:
    """dpm3 in data form. Three evaluations a step."""
    _check_third("dpmpp3s", r1, r2)
    return single_steps("dpmpp3s", grid, schedule, "data", lambda h: third(-h, r1, r2))


def dpm_fast(grid: Array, schedule: Schedule, *, tail: int = 1) -> Plan:
    """DPM-Solver-fast (Lu et al., 2022a, appendix): steps of DPM-Solver-3, then one of 1 or 2, or one of 2 and one of 1.

    Any number of evaluations K can be spent, in K // 3 + 1 steps; tail = K mod 3 says how the plan ends. A step to λ = +∞ is
    of order 1 and comes after.
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
    check_variant(solver, variant, ("midpoint", "taylor"))
    if not 0 < r1 <= 1:
        raise InputError(f"r1 of {solver} must be above 0 and at most 1, not {r1:g}")


def _check_third(solver: str, r1: float, r2: float) -> None:
    if not (0 < r1 < 1 and 0 < r2 <= 1 and abs(r1 - r2) > 1e-3):
        raise InputError(f"{solver} needs 0 < r1 < 1 and 0 < r2 ≤ 1, different from each other, not {r1:g} and {r2:g}")
    if abs(r2 - 2 / 3) >= 1e-6 and abs(r1 - 2 / 3) < 1e-3:
        raise InputError(f"{solver} has no third-order formula for r1 = {r1:g} with r2 = {r2:g}: move r1, or take r2 = 2/3")
