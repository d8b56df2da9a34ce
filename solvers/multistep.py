"""Multistep methods: steps that use the evaluations before them. Warm-up, final order and corrector are decided here alone.

    x_t = X x_s + C Σ_j w_j m_j + n z          m_j: the last evaluations, newest first; X, C: the transfer law (transfer.py)

A method is a Rule: it maps a step (its two ends) and the nodes λ_j of the m_j to the weights w_j. Almost every rule integrates
an interpolating polynomial over the step, w = interpolatory(c, μ). The rules differ in the coordinate c of the polynomial and
in the moments μ_k, which are exact for the exponential rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import numpy as np

from diffode.checks import choice
from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.butcher import single_step
from solvers.phi import interpolatory, moments
from solvers.plan import Plan
from solvers.singlestep import SIGN, SLOPES, write_step
from solvers.transfer import PlanBuilder, refuse_backwards

STRONGEST = 1e3  # η and τ, of the noise: with more of it no part of a state is kept over any step


@dataclass(frozen=True)
class Step:
    """The step that a Rule gives weights for: from λ_s to λ_t = λ_s + h, with noise of strength η, n = σ_t sqrt(1 − e^(−2ηh))."""

    lam_s: float
    lam_t: float
    eta: float = 0.0

    @property
    def h(self) -> float:
        """λ_t − λ_s."""
        return self.lam_t - self.lam_s

    def c(self, nodes: Array) -> Array:
        """Nodes in units of the step: 0 at λ_s, 1 at λ_t."""
        return (nodes - self.lam_s) / self.h


Rule = Callable[[Step, Array], Array]  # (step, nodes) -> weights that sum to 1


class Policy(TypedDict, total=False):
    """The options of every multistep solver.

    start: "ramp" (default): the first steps are of order 1, 2, ..., as published, which leaves an error of order 2 (3 with unic).
        "single": the first steps are single steps of the full order, which keeps the order and costs more evaluations.
    lower_final: whether the last steps are of order ..., 2, 1. Default False.
    unic: whether each step but the last is corrected (UniC) by the evaluation at its end, which the next step needs anyway, so
        that the correction costs no evaluation. Default False.
    """

    start: str
    lower_final: bool
    unic: bool


def exponential(prediction: str, slope: str = "taylor", second_moment_factor: float = 1.0) -> Rule:
    """The rule that integrates e^(∓λ) times the polynomial in λ through the nodes, exactly: the exponential Adams methods.

        w = interpolatory(c, μ),    c_j = (λ_j − λ_s)/h,    μ_k = k! φ_{k+1}(z)/φ_1(z),    z = ± (1 + η) h

    with + in noise form and − in data form.

    Arguments:
        prediction: "noise" or "data".
        slope: μ_1 where there are just two nodes, a name in SLOPES: "taylor" (default) is exact.
        second_moment_factor: a factor on μ_2 where there are three nodes. 1 is right; published third-order code has 1/2.

    Reference:
        Hochbruck and Ostermann (2010), Eq. 2.41.
    """

    def rule(step: Step, nodes: Array) -> Array:
        z = SIGN[prediction] * step.h * (1 + step.eta)
        mu = moments(len(nodes), z)
        if len(nodes) == 2:
            mu[1] = SLOPES[slope](z)
        if len(nodes) == 3:
            mu[2] *= second_moment_factor
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
    """The plan of a rule that uses the last `order` evaluations. One evaluation per step.

    A corrector repeats the step with the evaluation at its end and the same noise. The last finite step is not corrected: the
    state that the plan ends with, or leaves for λ = +∞, is the predicted one.

    Arguments:
        order: how many evaluations the predictor uses.
        rule: their weights.
        corrector: how many evaluations the corrector uses, the one at the end of the step included; 0 (default): no corrector.
        to_zero: whether the rule is finite over a step to λ = +∞ (σ̄ = 0). If not (default), that step is of order 1.
        eta: the noise strength η, one number, or one per step: (steps,).
        start, lower_final, unic: see `Policy`; unic is corrector=order + 1.
    """
    choice(f"the start of {solver}", start, ("ramp", "single"))
    if start == "single" and np.any(eta):
        raise InputError(f"a start with single steps is deterministic, and {solver} is not with η > 0: leave start at ramp")
    refuse_backwards(solver, grid, bool(np.any(eta)))
    lams = grid.tolist()  # arithmetic on NumPy's scalars is slow
    corrector = corrector or (order + 1) * unic
    builder, steps_left = PlanBuilder(schedule.path, prediction, lams[0]), len(lams) - 1
    history = [(lams[0], builder.evaluate())]  # (λ, index of the evaluation), oldest first
    for (lam_s, lam_t), strength in zip(pairwise(lams), np.broadcast_to(eta, steps_left).tolist(), strict=True):
        step, finite, draw = Step(lam_s, lam_t, float(strength)), math.isfinite(lam_t - lam_s), len(lams) - steps_left
        noise = float(schedule.sigma(lam_t)) * np.sqrt(-np.expm1(-2 * step.eta * step.h)) if step.eta else 0.0
        # The step before one to λ = +∞ is not corrected: the x̂0 that the plan ends with belongs to the state it was evaluated at.
        correct = bool(corrector and finite and steps_left > 1 and math.isfinite(lams[-steps_left + 1]))
        if start == "single" and len(history) < order and finite:
            write_step(builder, history[-1][1], lam_t, single_step(max(order, corrector), prediction))
            correct = False
        else:
            most = order if finite or (to_zero and lam_t == math.inf) else 1
            count = min(most, len(history), steps_left if lower_final else order)
            builder.move(lam_t, _weights(rule, step, history, count), noise=noise, draw=draw, commit=not correct)
        if not finite:
            history.clear()  # a step of infinite length is of order 1, and no polynomial reaches across it
        if steps_left > 1:
            history.append((lam_t, builder.evaluate()))
        if correct:
            count = min(corrector, len(history), steps_left + 1 if lower_final else corrector)
            builder.move(lam_t, _weights(rule, step, history, count), noise=noise, draw=draw)
        steps_left -= 1
    return builder.plan(f"{solver}+unic" if unic else solver)


def _weights(rule: Rule, step: Step, history: list[tuple[float, int]], count: int) -> dict[int, float]:
    """Index of an evaluation -> its weight, for the newest `count` evaluations of the history."""
    nodes = history[: -count - 1 : -1]
    weights = rule(step, np.array([lam for lam, _ in nodes])) if count > 1 else [1.0]
    return {j: float(w) for (_, j), w in zip(nodes, weights, strict=True)}
