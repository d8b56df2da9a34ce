"""Pseudo numerical methods (Liu et al., 2022): the classical weights of equal steps, with DDIM's step around them.

ε is extrapolated with the constant weights of Adams and Bashforth, (55, −59, 37, −9)/24 at order 4, and the step is DDIM's with
that ε. The weights are those of equal steps in σ̄; on any other smooth grid the order is 2. At ten steps and fewer the order says
little, and ipndm is often the best solver there is.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Unpack

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.multistep import Policy, Step, multistep
from solvers.phi import interpolatory
from solvers.plan import Plan
from solvers.transfer import PlanBuilder


def equal_steps(step: Step, nodes: Array) -> Array:
    """The rule of equal steps, wherever the nodes are: Adams–Bashforth, or Adams–Moulton if the end of the step is a node."""
    newest = 1.0 if nodes[0] == step.lam_t else 0.0
    return interpolatory(newest - np.arange(len(nodes), dtype=np.float64), 1 / np.arange(1.0, len(nodes) + 1))


def ipndm(grid: Array, schedule: Schedule, *, order: int = 4, **policy: Unpack[Policy]) -> Plan:
    """Improved PNDM: the last ε combined with the constant Adams–Bashforth weights of equal steps.

        x_t = (α_t/α_s) x_s + α_t (σ̄_t − σ̄_s) ε̃,      ε̃ = (55 ε_s − 59 ε_1 + 37 ε_2 − 9 ε_3)/24    with σ̄ = σ/α

    ε_1, ε_2, ε_3 come before ε_s. With fewer of them the weights are (23, −16, 5)/12, (3, −1)/2 and 1. A step to σ̄ = 0 is a step
    like any other. One evaluation per step; order 2, also with unic, since the weights ignore the lengths of the steps (order
    `order` only where steps are equal in σ̄).

    Arguments:
        order: how many evaluations are used, 1 to 4 (default). Order 1 is ddim.
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps of the full order.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        DEIS (Zhang and Chen, 2023), appendix H, after PNDM (Liu et al., 2022).
    """
    if order not in (1, 2, 3, 4):
        raise InputError(f"the order of ipndm is 1, 2, 3 or 4, not {order}")
    return multistep("ipndm", grid, schedule, "noise", order, equal_steps, to_zero=True, **policy)


def pndm(grid: Array, schedule: Schedule) -> Plan:
    """PNDM: three pseudo Runge–Kutta steps, then the constant Adams–Bashforth weights of order 4.

        x_t = (α_t/α_s) x_s + α_t (σ̄_t − σ̄_s) ε̃,        ε̃ = (55 ε_s − 59 ε_1 + 37 ε_2 − 9 ε_3)/24    with σ̄ = σ/α
        first three steps:  ε̃ = (ε_s + 2 ε_a + 2 ε_b + ε_c)/6

    ε_1, ε_2, ε_3 come before ε_s. ε_a and ε_b are evaluated in the middle of the step, after DDIM steps with ε_s and ε_a; ε_c at
    λ_t, after one with ε_b. The middle is that of the network's clock. Four evaluations for each of the first three steps, then
    one per step; order 2.

    Arguments:
        none besides the grid and the schedule.

    Reference:
        PNDM (Liu et al., 2022), Algorithm 2; the pseudo Runge–Kutta step is Eq. 13.
    """
    builder, history = PlanBuilder(schedule.path, "noise", grid[0]), []
    for lam_s, lam_t in pairwise(grid):
        history.append(builder.evaluate())
        if len(history) < 4 and lam_t == np.inf:  # a Runge–Kutta step would evaluate at σ = 0
            builder.move(lam_t, {history[-1]: 1.0})
        elif len(history) < 4:
            middle = float(schedule.lam(schedule.t([lam_s, lam_t]).mean()))
            indices = [history[-1]]
            for lam in (middle, middle, lam_t):
                builder.move(lam, {indices[-1]: 1.0}, commit=False)
                indices.append(builder.evaluate())
            builder.move(lam_t, dict(zip(indices, (1 / 6, 1 / 3, 1 / 3, 1 / 6), strict=True)))
        else:
            weights = equal_steps(Step(lam_s, lam_t), np.full(4, lam_s))
            builder.move(lam_t, dict(zip(history[:-5:-1], weights.tolist(), strict=True)))
    return builder.plan("pndm")
