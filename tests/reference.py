"""The papers' updates written out in their own symbols, independently of the transfer law: what the tables are compared with."""

from __future__ import annotations

import numpy as np


def ddim_eq_12(abar_s, abar_t, eta, x, eps, z):
    """Song et al. (2021), Eq. 12 and 16; abar is their α (a cumulative product), t − 1 is the cleaner point."""
    sigma = eta * np.sqrt((1 - abar_t) / (1 - abar_s)) * np.sqrt(1 - abar_s / abar_t)
    x0 = (x - np.sqrt(1 - abar_s) * eps) / np.sqrt(abar_s)
    return np.sqrt(abar_t) * x0 + np.sqrt(1 - abar_t - sigma**2) * eps + sigma * z


def ddpm_algorithm_2(abar_s, abar_t, variance, x, eps, z):
    """Ho et al. (2020), Algorithm 2, for one step of a sub-sequence: β = 1 − ᾱ_s/ᾱ_t."""
    beta = 1 - abar_s / abar_t
    mean = (x - beta / np.sqrt(1 - abar_s) * eps) / np.sqrt(1 - beta)
    return mean + np.sqrt(beta if variance == "large" else (1 - abar_t) / (1 - abar_s) * beta) * z


def _vp(lam):
    return 1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam))


def dpm_solver_2(lam_s, lam_t, r1, x, model):
    """Lu et al. (2022a), Algorithm 4; model(x, λ) is ε."""
    h = lam_t - lam_s
    (a_s, _), (a_1, s_1), (a_t, s_t) = _vp(lam_s), _vp(lam_s + r1 * h), _vp(lam_t)
    eps = model(x, lam_s)
    u = a_1 / a_s * x - s_1 * (np.exp(r1 * h) - 1) * eps
    return a_t / a_s * x - s_t * (np.exp(h) - 1) * eps - s_t / (2 * r1) * (np.exp(h) - 1) * (model(u, lam_s + r1 * h) - eps)


def dpm_solver_3(lam_s, lam_t, x, model, r1=1 / 3, r2=2 / 3):
    """Lu et al. (2022a), Algorithm 5."""
    h = lam_t - lam_s
    (a_s, _), (a_1, s_1), (a_2, s_2), (a_t, s_t) = (_vp(lam_s + r * h) for r in (0, r1, r2, 1))
    eps = model(x, lam_s)
    u1 = a_1 / a_s * x - s_1 * (np.exp(r1 * h) - 1) * eps
    d1 = model(u1, lam_s + r1 * h) - eps
    u2 = a_2 / a_s * x - s_2 * (np.exp(r2 * h) - 1) * eps - s_2 * r2 / r1 * ((np.exp(r2 * h) - 1) / (r2 * h) - 1) * d1
    d2 = model(u2, lam_s + r2 * h) - eps
    return a_t / a_s * x - s_t * (np.exp(h) - 1) * eps - s_t / r2 * ((np.exp(h) - 1) / h - 1) * d2


def dpm_solver_pp_2m(grid, x, model):
    """Lu et al. (2022b), Algorithm 2; model(x, λ) is x̂0."""
    previous = None
    for i in range(1, len(grid)):
        h = grid[i] - grid[i - 1]
        (_, s_s), (a_t, s_t) = _vp(grid[i - 1]), _vp(grid[i])
        x0 = model(x, grid[i - 1])
        d = x0
        if previous is not None:
            r = (grid[i - 1] - grid[i - 2]) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        x, previous = s_t / s_s * x - a_t * (np.exp(-h) - 1) * d, x0
    return x
