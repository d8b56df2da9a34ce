"""The transfer law, single steps, and the ramp: what solvers share.

A stage from s to t, for a prediction m = p0 x0 + p1 ε whose pair (p0, p1) does not depend on λ, is

    u = X · anchor + C · Σ_j w_j m_j + n · z          Σ_j w_j = 1
    α_s X + p0 C = α_t                                σ_s X + p1 C = sqrt(σ_t² − n²)

The two equations say that a point mass stays a point mass: at x = α_s x0 + σ_s ε with m its own prediction, u is
α_t x0 + σ_t ε' exactly. They fix X and C, so a solver supplies only the weights w and the noise n.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np

from diffode.errors import InputError
from diffode.prediction import PREDICTIONS
from diffode.schedule import Array, Path, Schedule
from solvers.plan import Plan, Stage

Rows = list[tuple[float, dict[int, float]]]  # a stage at λ_s + r h: (r, evaluation of this step -> weight)


def transfer(path: Path, prediction: str, lam_s: float, lam_t: float, noise: float = 0.0) -> tuple[float, float]:
    """(X, C) of the transfer law. With q = sqrt(1 − n²/σ_t²) and det = α_s p1 − σ_s p0,

        X = (α_t p1 − q σ_t p0)/det          C = α_t σ_s (q e^(−h) − 1)/det,    h = λ_t − λ_s

    free of cancellation for small h and finite at λ_t = +∞. InputError where det = 0: a noise prediction at α = 0.
    """
    alpha_s, sigma_s, alpha_t, sigma_t = (float(f(np.float64(lam))) for lam in (lam_s, lam_t) for f in (path.alpha, path.sigma))
    p0, p1 = PREDICTIONS[prediction](0.0, 0.0)
    det = alpha_s * p1 - sigma_s * p0
    if det == 0:
        raise InputError(
            f"no solver in {prediction} form can leave λ = {lam_s:g}, where α = {alpha_s:g}: use the data form, "
            "with a data or velocity network"
        )
    log_q = 0.5 * np.log1p(-min((noise / sigma_t) ** 2, 1 - 1e-16)) if noise else 0.0
    return (alpha_t * p1 - np.exp(log_q) * sigma_t * p0) / det, alpha_t * sigma_s * float(np.expm1(log_q - (lam_t - lam_s))) / det


def stage(
    path: Path,
    prediction: str,
    lam_s: float,
    lam_t: float,
    weights: Mapping[int, float],
    *,
    noise: float = 0.0,
    draw: int | None = None,
    evaluate: bool = True,
    commit: bool = True,
) -> Stage:
    """The Stage from λ_s to λ_t with the given weights (evaluation index -> w, summing to 1)."""
    x, c = transfer(path, prediction, lam_s, lam_t, noise)
    return Stage(lam_t, x, {j: c * w for j, w in weights.items()}, noise, draw if noise else None, evaluate, commit)


def start(grid: Array) -> Stage:
    """The first stage of every plan: the given state, evaluated."""
    return Stage(float(grid[0]), 1.0)


def single_steps(solver: str, grid: Array, schedule: Schedule, prediction: str, rows: Callable[[float], Rows]) -> Plan:
    """The plan of a method that forgets: rows(h) gives the stages of a step of length h, the last of which commits.

    A step from λ = −∞ or to λ = +∞ has no finite length, and is of order 1 whatever the method.
    """
    stages, made = [start(grid)], 0
    for lam_s, lam_t in pairwise(grid):
        h = lam_t - lam_s
        table = rows(h) if np.isfinite(h) else [(1.0, {0: 1.0})]
        for i, (r, weights) in enumerate(table, 1):
            lam = lam_t if r == 1 else lam_s + r * h
            absolute = {made + j: w for j, w in weights.items()}
            stages.append(stage(schedule.path, prediction, lam_s, lam, absolute, commit=i == len(table)))
        made += len(table)
    return Plan(solver, schedule.path, prediction, closed(stages))


def closed(stages: list[Stage]) -> tuple[Stage, ...]:
    """The stages of a plan, the last of them without its evaluation, since nothing follows that could use it."""
    return (*stages[:-1], dataclasses.replace(stages[-1], evaluate=False))


def ramp(grid: Array, order: int) -> list[int]:
    """The order of each step of a method that takes `order` evaluations of history: 1, 2, ... at the start.

    A step from λ = −∞ or to λ = +∞ has no finite length: it is of order 1 itself, and the ramp begins anew after it.
    """
    orders, history = [], 0
    for h in np.diff(grid):
        history = history + 1 if np.isfinite(h) else 0
        orders.append(max(1, min(history, order)))
    return orders
