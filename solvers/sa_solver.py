"""SA-Solver (Xue et al., 2023): stochastic Adams methods, a predictor and a corrector that shares its noise.

In data form with noise of strength τ: the exponential rules with z = −(1 + τ²) h and n = σ_t sqrt(1 − e^(−2 τ² h)).
"""

from __future__ import annotations

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.multistep import STRONGEST, exponential, multistep
from solvers.plan import Plan


def sa_solver(
    grid: Array,
    schedule: Schedule,
    *,
    order: int = 3,
    corrector: int = 4,
    tau: float = 1.0,
    s_tmin: float = 0.05,
    s_tmax: float = 1.0,
    lower_final: bool = False,
) -> Plan:
    """SA-Solver: a stochastic Adams–Bashforth predictor on x̂0, and an Adams–Moulton corrector with the same noise.

        x_t = (σ_t/σ_s) e^(−τ²h) x_s + α_t (1 − e^(−(1+τ²)h)) Σ_j w_j m_j + n z,      n = σ_t sqrt(1 − e^(−2τ²h)),   h = λ_t − λ_s

    m_j are the last evaluations of x̂0, with those weights w_j that integrate the polynomial in λ through them exactly. The
    corrector repeats the step with the evaluation at λ_t among them. One evaluation per step; weak order 2. With τ = 0 the
    defaults are dpmpp3m with UniC, of order 3 after its ramp of first steps.

    Arguments:
        order: how many evaluations the predictor uses, 1 to 4. Default 3.
        corrector: how many evaluations the corrector uses, 1 to 4; 0: no corrector. Default 4.
        tau: the noise τ, 0 (the ODE) or more. Default 1, the reverse-time SDE.
        s_tmin, s_tmax: noise is added where σ̄ = σ/α is between them. Defaults 0.05 and 1.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.

    Reference:
        SA-Solver (Xue et al., 2023); s_tmin and s_tmax as in its appendix E.2, on CIFAR-10.
    """
    if not (order in (1, 2, 3, 4) and corrector in (0, 1, 2, 3, 4)):
        raise InputError(f"sa-solver takes order 1 to 4 and corrector 0 to 4, not {order} and {corrector}")
    if not (0 <= tau <= STRONGEST and s_tmin >= 0):
        raise InputError(f"sa-solver takes τ from 0 to {STRONGEST:g} and s_tmin ≥ 0, not {tau:g} and {s_tmin:g}")
    sigma_bar = np.exp(-np.asarray(grid[:-1]))
    eta = np.where((sigma_bar >= s_tmin) & (sigma_bar <= s_tmax), tau**2, 0.0)
    rule = exponential("data")
    return multistep("sa-solver", grid, schedule, "data", order, rule, corrector=corrector, eta=eta, lower_final=lower_final)
