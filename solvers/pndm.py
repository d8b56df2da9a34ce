"""Pseudo numerical methods (Liu et al., 2022): classical weights, as for equal steps, around DDIM's transfer.

ε is extrapolated with the constant weights of Adams and Bashforth, (55, −59, 37, −9)/24 at order 4, and carried over the step
by the transfer law. The weights are those of equal steps in σ̄; on any other smooth grid the order is 2. That says little of ten
steps and fewer, where ipndm is often the best there is.
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
    """Adams–Bashforth weights of equal steps, wherever the nodes are; Adams–Moulton if the end of the step is among them."""
    first = 1.0 if nodes[0] == step.lam_t else 0.0
    return interpolatory(first - np.arange(len(nodes), dtype=np.float64), 1 / np.arange(1.0, len(nodes) + 1))


def ipndm(grid: Array, schedule: Schedule, *, order: int = 4, **policy: Unpack[Policy]) -> Plan:
    """Improved PNDM (Zhang and Chen, 2023, appendix H): its first steps are of orders 1, 2, ... One evaluation a step."""
    if order not in (1, 2, 3, 4):
        raise InputError(f"the order of ipndm is 1, 2, 3 or 4, not {order}")
    return multistep("ipndm", grid, schedule, "noise", order, equal_steps, to_zero=True, **policy)


def pndm(grid: Array, schedule: Schedule) -> Plan:
    """PNDM (Liu et al., 2022, Algorithm 2): three pseudo Runge–Kutta steps of four evaluations, then the weights of order 4.

    The middle of a step is that of the network's clock, as published; and it is never beyond the ends of the step.
    """
    builder, history = PlanBuilder(schedule.path, "noise", grid[0]), []
    for lam_s, lam_t in pairwise(grid):
        history.append(builder.evaluate())
        if len(history) < 4 and lam_t == np.inf:  # a Runge–Kutta step would evaluate at σ = 0
            builder.move(lam_t, {history[-1]: 1.0})
        elif len(history) < 4:
            first, middle = history[-1], float(schedule.lam(schedule.t([lam_s, lam_t]).mean()))
            indices = [first]
            for lam in (middle, middle, lam_t):
                builder.move(lam, {indices[-1]: 1.0}, commit=False)
                indices.append(builder.evaluate())
            builder.move(lam_t, dict(zip(indices, (1 / 6, 1 / 3, 1 / 3, 1 / 6), strict=True)))
        else:
            weights = equal_steps(Step(lam_s, lam_t), np.full(4, lam_s))
            builder.move(lam_t, dict(zip(history[:-5:-1], weights.tolist(), strict=True)))
    return builder.plan("pndm")
