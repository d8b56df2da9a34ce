"""DEIS (Zhang and Chen, 2023): Adams–Bashforth on ε, which is a polynomial in some variable v of the step, integrated exactly.

Since dy/dσ̄ = ε for y = x/α, the weights of order k are ∫ ℓ_j dσ̄/Δσ̄ with ℓ_j the Lagrange polynomials of the last k nodes

    deis-t        in t, the network's clock (tAB-DEIS); by quadrature, see below
    deis-rho      in σ̄ itself (ρAB-DEIS), which is the variable-step Adams method that k-diffusion calls lms
    deis-lambda   in λ: the exponential Adams–Bashforth method, which is UniPC's predictor in noise form

Order 1 of each is DDIM.
"""

from __future__ import annotations

from typing import Unpack

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.butcher import TABLES
from solvers.multistep import Policy, Rule, Step, exponential, multistep
from solvers.phi import interpolatory
from solvers.plan import Plan
from solvers.singlestep import single_steps

GAUSS = np.polynomial.legendre.leggauss(24)


def deis_t(grid: Array, schedule: Schedule, *, order: int = 3, **policy: Unpack[Policy]) -> Plan:
    """tAB-DEIS: ε as a polynomial in t, the clock of the network, integrated exactly over the step.

        x_t = (α_t/α_s) x_s + α_t (σ̄_t − σ̄_s) Σ_j w_j ε_j,      w_j = ∫ ℓ_j dσ̄/(σ̄_t − σ̄_s) over the step,    σ̄ = σ/α

    ε_j are the last evaluations and ℓ_j the Lagrange polynomials of their t. Integrals by quadrature, to rounding.
    One evaluation per step. The order is `order` with start="single" (plus 1 with unic), but at most 2 (3) with the default ramp.

    Arguments:
        order: how many evaluations are used, 1 to 4. Default 3. Order 1 is ddim.
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps of the full order.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        DEIS (Zhang and Chen, 2023), Eq. 15.
    """
    return _adams("deis-t", grid, schedule, order, _in_clock(schedule), policy)


def deis_rho(grid: Array, schedule: Schedule, *, order: int = 3, **policy: Unpack[Policy]) -> Plan:
    """ρAB-DEIS: ε as a polynomial in σ̄, which is the Adams–Bashforth method in σ̄ with variable steps.

        x_t = (α_t/α_s) x_s + α_t (σ̄_t − σ̄_s) Σ_j w_j ε_j,      w_j = ∫ ℓ_j dσ̄/(σ̄_t − σ̄_s) over the step,    σ̄ = σ/α

    ε_j are the last evaluations and ℓ_j the Lagrange polynomials of their σ̄. A step to σ̄ = 0 is a step like any other.
    One evaluation per step. The order is `order` with start="single" (plus 1 with unic), but at most 2 (3) with the default ramp.

    Arguments:
        order: how many evaluations are used, 1 to 4. Default 3. Order 1 is ddim.
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps of the full order.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        DEIS (Zhang and Chen, 2023); of order 4 it is the linear multistep method (lms) of k-diffusion.
    """
    return _adams("deis-rho", grid, schedule, order, in_sigma_bar, policy, to_zero=True)


def deis_lambda(grid: Array, schedule: Schedule, *, order: int = 3, **policy: Unpack[Policy]) -> Plan:
    """DEIS in λ: ε as a polynomial in λ, integrated exactly: the exponential Adams–Bashforth method.

        x_t = (α_t/α_s) x_s + α_t (σ̄_t − σ̄_s) Σ_j w_j ε_j,      w_j = ∫ ℓ_j dσ̄/(σ̄_t − σ̄_s) over the step,    σ̄ = σ/α

    ε_j are the last evaluations and ℓ_j the Lagrange polynomials of their λ. Of order 3 it is dpm3m.
    One evaluation per step. The order is `order` with start="single" (plus 1 with unic), but at most 2 (3) with the default ramp.

    Arguments:
        order: how many evaluations are used, 1 to 4. Default 3. Order 1 is ddim.
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps of the full order.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        DEIS (Zhang and Chen, 2023); Hochbruck and Ostermann (2010), Eq. 2.41. It is the predictor of UniPC in noise form.
    """
    return _adams("deis-lambda", grid, schedule, order, exponential("noise"), policy)


def deis_rho_rk(grid: Array, schedule: Schedule, *, order: int = 3) -> Plan:
    """ρRK-DEIS: a classical Runge–Kutta method in σ̄ = σ/α, Heun's (order 2), Kutta's (3) or RK4 (4).

        x_t = (α_t/α_s) x_s + α_t (σ̄_t − σ̄_s) Σ_i b_i ε_i       ε_i = ε(u_i, σ̄_i),    σ̄_i = σ̄_s + c_i (σ̄_t − σ̄_s)
        u_i = (α_i/α_s) x_s + α_i (σ̄_t − σ̄_s) Σ_j a_ij ε_j      a, b, c: the Butcher table

    `order` evaluations per step; order `order`.

    Arguments:
        order: 2, 3 (default) or 4.

    Reference:
        DEIS (Zhang and Chen, 2023), ρRK; the tables heun2, kutta3 and rk4 in solvers/butcher.py.
    """
    tables = {2: "heun2", 3: "kutta3", 4: "rk4"}
    if order not in tables:
        raise InputError(f"the order of deis-rho-rk is 2, 3 or 4, not {order}")
    return single_steps("deis-rho-rk", grid, schedule, "noise", TABLES[tables[order]].steps("noise"))


def _adams(name: str, grid: Array, schedule: Schedule, order: int, rule: Rule, policy: Policy, *, to_zero: bool = False) -> Plan:
    if order not in (1, 2, 3, 4):
        raise InputError(f"the order of {name} is 1, 2, 3 or 4, not {order}")
    return multistep(name, grid, schedule, "noise", order, rule, to_zero=to_zero, **policy)


def in_sigma_bar(step: Step, nodes: Array) -> Array:
    """The rule of polynomials in σ̄: their moments over the step are 1/(k + 1), also over a step to σ̄ = 0."""
    c = np.expm1(step.lam_s - nodes) / np.expm1(step.lam_s - step.lam_t)
    return interpolatory(c, 1 / np.arange(1.0, len(nodes) + 1))


def _in_clock(schedule: Schedule) -> Rule:
    """The rule of polynomials in t. The moments are integrals over λ, by Gauss–Legendre quadrature with 24 points between any two
    knots of the clock, where t(λ) is analytic: exact to rounding."""

    def rule(step: Step, nodes: Array) -> Array:
        ends = np.sort([step.lam_s, step.lam_t])
        inner = schedule.knots if schedule.knots is not None else np.empty(0)
        panels = np.unique([*ends, *inner[(inner > ends[0]) & (inner < ends[1])]])
        middle, half = (panels[1:] + panels[:-1])[:, None] / 2, np.diff(panels)[:, None] / 2
        lam = middle + half * GAUSS[0]
        weight = half * GAUSS[1] * np.exp(ends[0] - lam)  # dσ̄, up to a factor
        t_s, t_t = schedule.t([step.lam_s, step.lam_t])
        c = (schedule.t(lam) - t_s) / (t_t - t_s)
        mu = [float((weight * c**k).sum() / weight.sum()) for k in range(len(nodes))]
        return interpolatory((schedule.t(nodes) - t_s) / (t_t - t_s), mu)

    return rule
