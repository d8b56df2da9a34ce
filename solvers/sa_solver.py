"""SA-Solver (Xue et al., 2023): stochastic Adams methods, a predictor and a corrector that shares its noise.

In data form with noise of strength τ: the exponential rules with z = −(1 + τ²) h and n = σ_t sqrt(1 − e^(−2 τ² h)).
"""

from __future__ import annotations

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.multistep import exponential, multistep
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
    """SA-Solver with `order` nodes of its predictor and `corrector` nodes of its corrector (0: none), each up to 4.

    Noise of strength τ is added where σ̄ is between s_tmin and s_tmax (Xue et al., 2023, appendix E.2, on CIFAR-10), and none
    elsewhere; τ = 0 is the ODE. One evaluation a step.
    """
    if not (order in (1, 2, 3, 4) and corrector in (0, 1, 2, 3, 4)):
        raise InputError(f"sa-solver takes order 1 to 4 and corrector 0 to 4, not {order} and {corrector}")
    if not (0 <= tau < np.inf and s_tmin >= 0):
        raise InputError(f"sa-solver takes τ ≥ 0 and s_tmin ≥ 0, not {tau:g} and {s_tmin:g}")
    sigma_bar = np.exp(-np.asarray(grid[:-1]))
    eta = np.where((sigma_bar >= s_tmin) & (sigma_bar <= s_tmax), tau**2, 0.0)
    rule = exponential("data")
    return multistep("sa-solver", grid, schedule, "data", order, rule, corrector=corrector, eta=eta, lower_final=lower_final)
