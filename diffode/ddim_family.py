"""The non-Markovian forward processes q_σ of the DDIM paper, for any σ (Song, Meng and Ermon, 2021, section 3).

A grid of λ, noisy to clean, is their sub-sequence τ from x_T to x_1, and n, one number per step s → t, is their σ. In our symbols
(their α is our α²):

    q(x_t | x_s, x0) = N(α_t x0 + sqrt(σ_t² − n²) (x_s − α_s x0)/σ_s, n² I)                            Eq. 7
    q(x_s | x_t, x0) = N(α_s x0 + sqrt(σ_t² − n²) σ_s/σ_t² (x_t − α_t x0), n² σ_s²/σ_t² I)             Eq. 8, by Bayes' rule
    q(x_t | x0)      = N(α_t x0, σ_t² I), whatever n                                                   Eq. 4, Lemma 1

for 0 ≤ n ≤ σ_t. The generative process p_θ puts the network's x̂0 for x0 in Eq. 7; its last step, to λ = +∞, is N(x̂0, n² I) with
any n ≥ 0 (Eq. 10). With q = sqrt(1 − n²/σ_t²) and h = λ_t − λ_s, the weight of x0 in Eq. 7 is c = α_t (1 − q e^(−h)), and

    KL(q(x_t | x_s, x0) ‖ p_θ(x_t | x_s)) = c² ‖x0 − x̂0‖²/(2 n²) = γ ‖ε − ε_θ‖²          γ = (c σ_s/(α_s n))²/2

which is Theorem 1: J_σ is L_γ (Eq. 5) and a constant (docs/lemma2.md derives it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffode import grid as grids
from diffode.checks import number, numbers
from diffode.errors import InputError, shown
from diffode.schedule import Array, Schedule, require


def noise_of_eta(grid: Array, schedule: Schedule, eta: float) -> Array:
    """n = η σ_t sqrt(1 − e^(−2h)), (steps,): σ(η) of Eq. 16 ((18) in the slides of Ma, 2023). η = 1 is σ² = β̃ of τ."""
    eta = number("eta", eta, 0)
    if not eta:
        return np.zeros(len(grid) - 1)  # also on a decreasing grid, where the root is not real
    return eta * schedule.sigma(grid[1:]) * np.sqrt(-np.expm1(-2 * np.diff(grid)))


def noise_hat(grid: Array, schedule: Schedule) -> Array:
    """n = σ_s sqrt(1 − e^(−2h)), (steps,): the paper's σ̂, σ² = β of τ. Not of the family: it goes with the mean of η = 1."""
    return schedule.sigma(grid[:-1]) * np.sqrt(-np.expm1(-2 * np.diff(grid)))


def largest(grid: Array, schedule: Schedule) -> Array:
    """The largest n of each step, (steps,): σ_t, with which x_t is independent of x_s; infinity for a step to λ = +∞."""
    return np.where(grid[1:] < np.inf, schedule.sigma(grid[1:]), np.inf)


@dataclass(frozen=True)
class Gaussian:
    """N(x · state + x0 · x0, std² I), given a state and x0: the coefficients of each step, (steps,)."""

    x: Array
    x0: Array
    std: Array


class Family:
    """q_σ for one σ: noise (steps,) is n, in the order of the grid, so that their σ_1 is the last.

    InputError for a grid that does not increase or begins at α = 0, and for n that are not 0 ≤ n ≤ `largest`.
    """

    def __init__(self, grid: Sequence[float] | Array, schedule: Schedule, noise: ArrayLike) -> None:
        self.grid, self.noise = grids.check(grid), numbers("noise", noise, grids.MOST_STEPS)
        require(schedule)
        self.alpha, self.sigma = schedule.alpha(self.grid), schedule.sigma(self.grid)  # of the marginals, Eq. 4
        steps, most = len(self.grid) - 1, largest(self.grid, schedule)
        if self.noise.shape != (steps,) or not np.isfinite(self.noise).all():
            raise InputError(f"a grid of {steps} steps takes {steps} finite σ, one per step, not {shown(self.noise.tolist())}")
        if self.grid[0] == -np.inf:
            raise InputError("q_σ is conditioned on states that hold some of x0: begin the grid where α > 0")
        if wrong := np.flatnonzero((self.noise < 0) | (self.noise > most * (1 + 1e-12))).tolist():
            i = wrong[0]
            raise InputError(
                f"σ = {self.noise[i]:g} of the step from λ = {self.grid[i]:g} to {self.grid[i + 1]:g} is impossible: "
                f"it must be between 0 and sqrt(1 − α) = {most[i]:g} there (in the paper's symbols)"
            )
        with np.errstate(divide="ignore"):  # q = 0 is log q = −∞
            self._log_q = 0.5 * np.log1p(-(np.minimum(self.noise / most, 1) ** 2))
        self._h = np.diff(self.grid)

    def reverse(self) -> Gaussian:
        """q(x_t | x_s, x0), Eq. 7; for a step to λ = +∞ the p_θ(x0 | x_s) of Eq. 10, with x0 for x̂0."""
        x = np.exp(self._log_q) * self.sigma[1:] / self.sigma[:-1]
        return Gaussian(x, -self.alpha[1:] * np.expm1(self._log_q - self._h), self.noise)

    def forward(self) -> Gaussian:
        """q(x_s | x_t, x0), Eq. 8, of the steps to finite λ. It needs x0, and is no Markov chain, unless η = 1."""
        finite = slice(len(self._h) - bool(self.grid[-1] == np.inf))
        ratio, log_q, h = self.sigma[:-1][finite] / self.sigma[1:][finite], self._log_q[finite], self._h[finite]
        return Gaussian(np.exp(log_q) * ratio, -self.alpha[:-1][finite] * np.expm1(log_q + h), self.noise[finite] * ratio)

    def gamma(self) -> Array:
        """γ, (steps,), with which L_γ is J_σ but for a constant; InputError unless all n > 0 and the grid ends at λ = +∞."""
        if not self.noise.all() or self.grid[-1] < np.inf:
            raise InputError("J_σ is finite where every σ is above 0, and the grid ends at x0: end it with λ = +∞ (denoise)")
        return 0.5 * (self.reverse().x0 * np.exp(-self.grid[:-1]) / self.noise) ** 2
