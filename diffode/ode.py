"""The probability-flow ODE, and the variables and states it can be written for.

    d(x/α)/dλ = −e^(−λ) ε(x, λ)      d(x/σ)/dλ = e^λ x̂0(x, λ)      dx/dλ = (d log α/dλ) x − σ ε(x, λ)

The three are one equation. Solvers that are planned take the first two, whose linear part is gone; an integrator that looks at
the size of the state and its errors (torchdiffeq) is given one of VARIABLES: x itself in λ, which on the vp path stays of order
1 at all λ; y = x/α in σ̄ = σ/α, where dy/dσ̄ = ε (Song et al., 2021a, Eq. 14); or x in the network's clock t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from diffode import checks
from diffode.calling import check_state
from diffode.errors import InputError
from diffode.evaluation import Counter
from diffode.model import EpsModel
from diffode.schedule import Schedule

Drift = Callable[[float, Tensor], Tensor]


@dataclass(frozen=True)
class Variable:
    """A variable v in which the ODE is integrated, monotone in λ, and the state u of it:

        x = scale(λ) u      du/dv = a(λ) u + b(λ) ε(x, λ)

    All take the schedule and a number; `of` is v(λ) and takes an array of them too, `lam` is λ(v), `coefficients` are (a, b).
    """

    symbol: str
    of: Callable[[Schedule, Any], Any]
    lam: Callable[[Schedule, float], float]
    scale: Callable[[Schedule, float], float]
    coefficients: Callable[[Schedule, float], tuple[float, float]]

    def inverse(self, schedule: Schedule, lam_s: float, lam_t: float) -> Callable[[float], float]:
        """λ(v) between two ends in either order; what rounding puts outside them is put back on them."""
        noisy, clean = sorted((lam_s, lam_t))
        low, high = sorted(float(self.of(schedule, lam)) for lam in (lam_s, lam_t))
        return lambda v: float(min(max(self.lam(schedule, min(max(v, low), high)), noisy), clean))


def _in_lam(schedule: Schedule, lam: float) -> tuple[float, float]:
    """dx/dλ = (d log α/dλ) x − σ ε."""
    return float(schedule.path.dlog_alpha(lam)), -float(schedule.sigma(lam))


def _in_t(schedule: Schedule, lam: float) -> tuple[float, float]:
    """dx/dt = dx/dλ · dλ/dt."""
    rate = float(schedule.rate(schedule.t(lam)))
    a, b = _in_lam(schedule, lam)
    return a * rate, b * rate


VARIABLES = {
    "lam": Variable(
        "λ", of=lambda schedule, lam: lam, lam=lambda schedule, v: v, scale=lambda schedule, lam: 1.0, coefficients=_in_lam
    ),
    "sigma_bar": Variable(
        "σ̄",
        of=lambda schedule, lam: np.exp(np.negative(lam)),
        lam=lambda schedule, v: -float(np.log(v)),
        scale=lambda schedule, lam: float(schedule.alpha(lam)),
        coefficients=lambda schedule, lam: (0.0, 1.0),
    ),
    "t": Variable(
        "t",
        of=Schedule.t,
        lam=lambda schedule, v: float(schedule.lam(v)),
        scale=lambda schedule, lam: 1.0,
        coefficients=_in_t,
    ),
}


def drift(model: EpsModel, variable: Variable = VARIABLES["lam"], counter: Counter | None = None) -> Drift:
    """du/dv as a function f(λ, u) for u (batch, *shape): it takes λ, not v, since the model does. By default v = λ, f = dx/dλ.

    Each call is one evaluation of the model, and is counted.
    """
    checks.instance("model", model, EpsModel, "an EpsModel, as EpsModel(network, schedule)")
    checks.instance("variable", variable, Variable, "one of ode.VARIABLES")
    schedule = model.schedule

    def f(lam: float, u: Tensor) -> Tensor:
        a, b = variable.coefficients(schedule, lam)
        return model(u * variable.scale(schedule, lam), lam, counter=counter).mul_(b).add_(u, alpha=a)

    return f


@torch.no_grad()
def accurate(
    model: EpsModel, x: Tensor, lam_s: float, lam_t: float, tolerance: float = 1e-12, counter: Counter | None = None
) -> Tensor:
    """The state at λ_t of the trajectory through x (batch, *shape) at λ_s, by SciPy's DOP853 in float64: a ground truth.

    It takes hundreds of evaluations, by a model in float64. rtol and atol are both `tolerance`; DOP853 takes one norm over the
    whole batch, so a single sample may be worse. InputError if the tolerance cannot be met.
    """
    lam_s, lam_t = checks.number("lam_s", lam_s), checks.number("lam_t", lam_t)
    tolerance = checks.number("tolerance", tolerance, positive=True)
    f, x = drift(model, counter=counter), check_state("x", x)

    def flat(lam: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
        return f(float(lam), torch.from_numpy(state).view(x.shape).to(x.device)).flatten().cpu().numpy()

    start = x.detach().double().cpu().numpy().ravel()
    solution = solve_ivp(flat, (lam_s, lam_t), start, method="DOP853", rtol=tolerance, atol=tolerance)
    if not solution.success:
        reached = f"λ = {solution.t[-1]:.6g} of {lam_t:.6g}"
        raise InputError(f"DOP853 stopped at {reached} ({solution.message}): the model is not smooth there; raise the tolerance")
    return torch.from_numpy(solution.y[:, -1]).view(x.shape).to(x.device)
