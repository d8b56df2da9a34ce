"""Multistep methods: steps that use the evaluations before them. Warm-up, final order and corrector are decided here alone.

A method is a rule: from the ends of a step and the nodes λ_j at which the model has been evaluated, newest first, to their
weights. Almost every rule is an interpolating polynomial integrated over the step, w = interpolatory(c, μ): the rules differ
in the coordinate c in which it is a polynomial, and in the moments μ_k, which for the exponential rules are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.butcher import single
from solvers.phi import interpolatory, moments
from solvers.plan import Plan
from solvers.singlestep import SIGN, SLOPES, step
from solvers.transfer import PlanBuilder, refuse_backwards


@dataclass(frozen=True)
class Step:
    """From λ_s to λ_t, h apart, with noise of strength η: n = σ_t sqrt(1 − e^(−2ηh))."""

    lam_s: float
    lam_t: float
    eta: float = 0.0

    @property
    def h(self) -> float:
        return self.lam_t - self.lam_s

    def c(self, nodes: Array) -> Array:
        """Nodes in units of the step: 0 at λ_s, 1 at λ_t."""
        return (nodes - self.lam_s) / self.h


Rule = Callable[[Step, Array], Array]  # (step, nodes) -> weights that sum to 1


class Policy(TypedDict, total=False):
    """What every multistep method can be told.

    start: "ramp" (orders 1, 2, ...) or "single" (single steps of the full order, which keep it). lower_final: the last steps of
    orders ..., 2, 1. unic: correct each step but the last with the evaluation at its end (UniC), which costs none.
    """

    start: str
    lower_final: bool
    unic: bool


def exponential(prediction: str, slope: str = "taylor", second: float = 1.0) -> Rule:
    """Exact weights of e^(∓λ) times a polynomial in λ (Hochbruck and Ostermann, 2010, Eq. 2.41), to which noise adds (1 + η).

    slope: the first moment where there are just two nodes, see SLOPES. second: a factor on the second moment where there are
    three, 1 being right; published third-order code has 1/2.
    """

    def rule(step: Step, nodes: Array) -> Array:
        z = SIGN[prediction] * step.h * (1 + step.eta)
        mu = moments(len(nodes), z)
        if len(nodes) == 2:
            mu[1] = SLOPES[slope](z)
        if len(nodes) == 3:
            mu[2] *= second
        return interpolatory(step.c(nodes), mu)

    return rule


def multistep(
    solver: str,
    grid: Array,
    schedule: Schedule,
    prediction: str,
    order: int,
    rule: Rule,
    *,
    corrector: int = 0,
    to_zero: bool = False,
    eta: Array | float = 0.0,
    start: str = "ramp",
    lower_final: bool = False,
    unic: bool = False,
) -> Plan:
    """The plan of a rule with `order` nodes, one evaluation a step.

    corrector: its nodes, the end of the step among them, if there is one; `unic` is order + 1. It redoes the step with the same
    noise. The last finite step has none: the state that the plan ends with, or leaves for λ = +∞, is the predicted one.
    to_zero: the rule is finite over a step to λ = +∞, σ̄ = 0, and is not replaced by order 1 there. eta: noise strength, a number
    or one a step.
    """
    if start not in ("ramp", "single"):
        raise InputError(f"the start of {solver} is ramp or single, not {start!r}")
    if start == "single" and np.any(eta):
        raise InputError(f"a start with single steps is deterministic, and {solver} is not with η > 0: leave it at ramp")
    refuse_backwards(solver, grid, bool(np.any(eta)))
    corrector = corrector or (order + 1) * unic
    builder, left = PlanBuilder(schedule.path, prediction, grid[0]), len(grid) - 1
    history = [(grid[0], builder.evaluate())]  # oldest first
    for (lam_s, lam_t), strength in zip(pairwise(grid), np.broadcast_to(eta, left), strict=True):
        this, finite, draw = Step(lam_s, lam_t, float(strength)), np.isfinite(lam_t - lam_s), len(grid) - left
        noise = float(schedule.sigma(lam_t)) * np.sqrt(-np.expm1(-2 * this.eta * this.h)) if this.eta else 0.0
        # The evaluation before a step to λ = +∞ makes the x̂0 that the plan ends with: it is to be of the state it is used with.
        correct = bool(corrector and finite and left > 1 and np.isfinite(grid[-left + 1]))
        if start == "single" and len(history) < order and finite:
            step(builder, history[-1][1], lam_t, single(max(order, corrector), prediction))
            correct = False
        else:
            most = order if finite or (to_zero and lam_t == np.inf) else 1
            count = min(most, len(history), left if lower_final else order)
            builder.move(lam_t, _weights(rule, this, history, count), noise=noise, draw=draw, commit=not correct)
        if not finite:
            history.clear()  # a step of no finite length is of order 1, and no polynomial reaches across it
        if left > 1:
            history.append((lam_t, builder.evaluate()))
        if correct:
            count = min(corrector, len(history), left + 1 if lower_final else corrector)
            builder.move(lam_t, _weights(rule, this, history, count), noise=noise, draw=draw)
        left -= 1
    return builder.plan(f"{solver}+unic" if unic else solver)


def _weights(rule: Rule, this: Step, history: list[tuple[float, int]], count: int) -> dict[int, float]:
    """Evaluation -> weight, for the newest `count` nodes of the history."""
    nodes = history[: -count - 1 : -1]
    weights = rule(this, np.array([lam for lam, _ in nodes])) if count > 1 else [1.0]
    return {j: float(w) for (_, j), w in zip(nodes, weights, strict=True)}
