"""The transfer law, and the PlanBuilder that applies it: weights in, rows out.

A stage from s to t, for a prediction m = p0 x0 + p1 ε whose pair (p0, p1) does not depend on λ, is

    u = X · anchor + C · Σ_j w_j m_j + n · z          Σ_j w_j = 1
    α_s X + p0 C = α_t                                σ_s X + p1 C = sqrt(σ_t² − n²)

The two equations say that a point mass stays a point mass: at x = α_s x0 + σ_s ε, with the exact m, u is α_t x0 + σ_t ε'
exactly. They fix X and C, so a solver supplies only the weights w and the noise n. Both equations hold for falling λ too, so a
deterministic solver can also be planned backwards, from data to noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from diffode.checks import unknown
from diffode.errors import InputError
from diffode.prediction import CONSTANT
from diffode.schedule import Array, ProbabilityPath
from solvers.plan import Plan, Stage


def transfer(path: ProbabilityPath, prediction: str, lam_s: float, lam_t: float, noise: float = 0.0) -> tuple[float, float]:
    """(X, C) of the transfer law. With q = sqrt(1 − n²/σ_t²) and det = α_s p1 − σ_s p0,

        X = (α_t p1 − q σ_t p0)/det          C = α_t σ_s (q e^(−h) − 1)/det,    h = λ_t − λ_s

    They are free of cancellation for small h, and finite at λ_t = +∞. InputError where det = 0: for a noise prediction at α = 0,
    and for a data prediction at σ = 0.
    """
    if prediction not in CONSTANT:
        raise unknown("prediction of a plan", prediction, CONSTANT)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = path.at(lam_s), path.at(lam_t)
    p0, p1 = CONSTANT[prediction]
    det = alpha_s * p1 - sigma_s * p0
    if det == 0 or not np.isfinite(det):
        raise InputError(
            f"no solver in {prediction} form can leave λ = {lam_s:g}, where α = {alpha_s:g} and σ = {sigma_s:g}: "
            + ("take one in data form (dpmpp2m, unipc2, ...), with a data or velocity network" if alpha_s == 0 else "end earlier")
        )
    log_q = 0.5 * np.log1p(-min((noise / sigma_t) ** 2, 1 - 1e-16)) if noise else 0.0
    return (alpha_t * p1 - np.exp(log_q) * sigma_t * p0) / det, alpha_t * sigma_s * float(np.expm1(log_q - (lam_t - lam_s))) / det


def refuse_backwards(solver: str, grid: Array, noise: bool) -> None:
    """InputError for a solver that draws noise on a falling grid: encoding is deterministic."""
    if noise and grid[-1] < grid[0]:
        raise InputError(f"{solver} draws noise, and noise cannot be encoded: take a deterministic solver, or eta=0 (tau=0)")


class PlanBuilder:
    """Writes a Plan stage by stage, from the state at `lam` on: `move` adds a state, `evaluate` the model's prediction there."""

    def __init__(self, path: ProbabilityPath, prediction: str, lam: float) -> None:
        self.path, self.prediction = path, prediction
        self.stages = [Stage(lam, 1.0, evaluate=False)]
        self.lam = self.stages[0].lam  # of the anchor
        self._evaluations = 0

    def evaluate(self) -> int:
        """Evaluate the model at the newest state, and return the index of the evaluation."""
        self.stages[-1] = dataclasses.replace(self.stages[-1], evaluate=True)
        self._evaluations += 1
        return self._evaluations - 1

    def move(
        self, lam: float, weights: Mapping[int, float], *, noise: float = 0.0, draw: int | None = None, commit: bool = True
    ) -> None:
        """Add a state at λ, made from the anchor by the transfer law.

        weights: index of an evaluation -> w, summing to 1.    noise: its std n.    draw: which N(0, I) tensor, if n > 0.
        commit: whether the state becomes the anchor.
        """
        x, c = transfer(self.path, self.prediction, self.lam, lam, noise)
        self.put(Stage(lam, x, {j: c * w for j, w in weights.items()}, noise, draw if noise else None, False, commit))

    def put(self, stage: Stage) -> None:
        """Add a stage as it is, for the few that `move` cannot express."""
        self.stages.append(stage)
        self.lam = stage.lam if stage.commit else self.lam

    def plan(self, solver: str, *, exact_marginals: bool = True) -> Plan:
        """The finished plan. Plan checks it, and raises InputError if it breaks the transfer law."""
        return Plan(solver, self.path, self.prediction, tuple(self.stages), exact_marginals)
