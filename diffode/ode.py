"""The probability-flow ODE in λ, and the states it can be written for.

    d(x/α)/dλ = −e^(−λ) ε(x, λ)      d(x/σ)/dλ = e^λ x̂0(x, λ)      dx/dλ = (d log α/dλ) x − σ ε(x, λ)

The three are one equation. Solvers that are planned take the first two, whose linear part is gone; integrators that look at
the size of the state and its errors (torchdiffeq) are given x itself, which on the vp path stays of order 1 at all λ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from diffode.model import EpsModel

Drift = Callable[[float, Tensor], Tensor]


def drift(model: EpsModel) -> Drift:
    """dx/dλ as f(λ, x), for x (batch, *shape) on the model's path; one evaluation of the model a call."""
    path = model.schedule.path

    def f(lam: float, x: Tensor) -> Tensor:
        sigma, rate = float(model.schedule.sigma(lam)), float(path.dlog_alpha(lam))
        return model(x, lam).mul_(-sigma).add_(x, alpha=rate)

    return f


def accurate(model: EpsModel, x: Tensor, lam_s: float, lam_t: float, tolerance: float = 1e-12) -> Tensor:
    """The state at λ_t of the trajectory through x (batch, *shape) at λ_s, by SciPy's DOP853 in float64: a ground truth.

    It takes hundreds of evaluations and is meant for exact models. rtol and atol are `tolerance`.
    """
    f = drift(model)

    def flat(lam: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
        return f(float(lam), torch.from_numpy(state).view(x.shape)).flatten().numpy()

    start = x.detach().double().cpu().numpy().ravel()
    solution = solve_ivp(flat, (lam_s, lam_t), start, method="DOP853", rtol=tolerance, atol=tolerance)
    return torch.from_numpy(solution.y[:, -1]).view(x.shape)
