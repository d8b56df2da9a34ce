"""The papers' updates written out in their own symbols, independently of the transfer law: what the tables are compared with."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def ddim_eq_12(abar_s, abar_t, eta, x, eps, z):
    """Song et al. (2021), Eq. 12 and 16; abar is their α (a cumulative product), t − 1 is the cleaner point."""
    sigma = eta * np.sqrt((1 - abar_t) / (1 - abar_s)) * np.sqrt(1 - abar_s / abar_t)
    x0 = (x - np.sqrt(1 - abar_s) * eps) / np.sqrt(abar_s)
    return np.sqrt(abar_t) * x0 + np.sqrt(1 - abar_t - sigma**2) * eps + sigma * z


def euler(alpha_s, sigma_s, alpha_t, sigma_t, x, eps):
    """Euler's method for dy/dσ̄ = ε in y = x/α and σ̄ = σ/α: Song et al. (2021), Eq. 14, as samplers mean by euler."""
    return alpha_t * (x / alpha_s + (sigma_t / alpha_t - sigma_s / alpha_s) * eps)


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


def dpm_solver_pp_3m(grid, x, model, second):
    """Lu et al. (2022b), the authors' multistep code of order 3, with orders 1 and 2 to start; model(x, λ) is x̂0.

    `second` multiplies D2: 1 is what is published, 2 makes it the second derivative.
    """
    m = []
    for i in range(1, len(grid)):
        h = grid[i] - grid[i - 1]
        (_, s_s), (a_t, s_t) = _vp(grid[i - 1]), _vp(grid[i])
        m.append(model(x, grid[i - 1]))
        phi_1 = np.exp(-h) - 1
        phi_2 = phi_1 / h + 1
        phi_3 = phi_2 / h - 0.5
        u = s_t / s_s * x - a_t * phi_1 * m[-1]
        if i == 2:
            r0 = (grid[i - 1] - grid[i - 2]) / h
            u = u - 0.5 * a_t * phi_1 * (m[-1] - m[-2]) / r0
        if i > 2:
            r0, r1 = (grid[i - 1] - grid[i - 2]) / h, (grid[i - 2] - grid[i - 3]) / h
            d1_0, d1_1 = (m[-1] - m[-2]) / r0, (m[-2] - m[-3]) / r1
            d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            u = u + a_t * phi_2 * d1 - a_t * phi_3 * second * d2
        x = u
    return x


def unipc(order, variant, grid, x, model):
    """Zhao et al. (2023), the authors' multistep_uni_pc_bh_update; model(x, λ) is x̂0. The last step is not corrected."""
    lams, m = [grid[0]], [model(x, grid[0])]
    for i in range(1, len(grid)):
        p = min(order, i)
        h = grid[i] - grid[i - 1]
        (_, s_s), (a_t, s_t) = _vp(grid[i - 1]), _vp(grid[i])
        rks = np.array([(lams[-1 - k] - lams[-1]) / h for k in range(1, p)] + [1.0])
        d1s = [(m[-1 - k] - m[-1]) / rk for k, rk in zip(range(1, p), rks, strict=False)]
        hh = -h
        h_phi_1 = np.expm1(hh)
        h_phi_k, factorial = h_phi_1 / hh - 1, 1.0
        b_h = hh if variant == "bh1" else np.expm1(hh)
        rows, b = [], []
        for k in range(1, p + 1):
            rows.append(rks ** (k - 1))
            b.append(h_phi_k * factorial / b_h)
            factorial *= k + 1
            h_phi_k = h_phi_k / hh - 1 / factorial
        rows, b = np.array(rows), np.array(b)
        start = s_t / s_s * x - a_t * h_phi_1 * m[-1]
        rhos_p = [] if p == 1 else [0.5] if p == 2 else np.linalg.solve(rows[:-1, :-1], b[:-1])
        predicted = start - a_t * b_h * sum((rho * d for rho, d in zip(rhos_p, d1s, strict=True)), 0 * x)
        if i == len(grid) - 1:
            return predicted
        m_t = model(predicted, grid[i])
        rhos_c = [0.5] if p == 1 else np.linalg.solve(rows, b)
        corrections = sum((rho * d for rho, d in zip(rhos_c[:-1], d1s, strict=True)), 0 * x) + rhos_c[-1] * (m_t - m[-1])
        x = start - a_t * b_h * corrections
        lams.append(grid[i])
        m.append(m_t)
    return x


def edm_algorithm_1(grid, x, model):
    """Karras et al. (2022), Algorithm 1, in y = x/α and t = σ/α, where it is dy/dt = ε; model(x, λ) is ε."""
    y = x / _vp(grid[0])[0]
    for lam_s, lam_t in pairwise(grid):
        step = np.exp(-lam_t) - np.exp(-lam_s)
        d = model(_vp(lam_s)[0] * y, lam_s)
        slope = model(_vp(lam_t)[0] * (y + step * d), lam_t)
        y = y + step * (d + slope) / 2
    return _vp(grid[-1])[0] * y


def _transfer(x, lam_s, lam_t, eps):
    """Liu et al. (2022), Eq. 9: DDIM's step."""
    (a_s, s_s), (a_t, s_t) = _vp(lam_s), _vp(lam_t)
    return a_t / a_s * x + (s_t - s_s * a_t / a_s) * eps


def pndm(grid, x, model, schedule):
    """Liu et al. (2022), Algorithm 2 with the pseudo Runge–Kutta of Eq. 13; model(x, λ) is ε, and the middle is that of t."""
    ets = []
    for s, t in pairwise(grid):
        ets.append(model(x, s))
        if len(ets) <= 3:
            middle = float(schedule.lam(schedule.t([s, t]).mean()))
            e2 = model(_transfer(x, s, middle, ets[-1]), middle)
            e3 = model(_transfer(x, s, middle, e2), middle)
            e4 = model(_transfer(x, s, t, e3), t)
            eps = (ets[-1] + 2 * e2 + 2 * e3 + e4) / 6
        else:
            eps = (55 * ets[-1] - 59 * ets[-2] + 37 * ets[-3] - 9 * ets[-4]) / 24
        x = _transfer(x, s, t, eps)
    return x


def ipndm(grid, x, model):
    """Zhang and Chen (2023), appendix H: Adams–Bashforth weights of orders 1, 2, 3, 4."""
    ets = []
    for s, t in pairwise(grid):
        ets.append(model(x, s))
        weights = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
        x = _transfer(x, s, t, sum(w * e for w, e in zip(weights[min(len(ets), 4)], ets[::-1], strict=False)))
    return x
