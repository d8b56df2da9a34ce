"""torchdiffeq's integrators on dx/dλ (diffode.ode), by their own names.

They know nothing of the equation's exact linear part and look at x itself, so they are the honest baseline for solvers that
do. Time is float64 and runs from the first to the last value of the grid; adaptive methods are given `step_t` and a first
step, without which torchdiffeq calls the model beyond the end. They need finite ends: no step to λ = +∞.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchdiffeq import odeint

from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.ode import drift
from diffode.schedule import Array
from solvers.execute import Result, refuse_nonfinite


@dataclass(frozen=True)
class Method:
    """A method of torchdiffeq. evaluations: a step, 0 where steps differ (the Adams methods) or are adaptive."""

    name: str
    order: int
    evaluations: int = 0
    adaptive: bool = False


METHODS = (
    Method("dopri8", 8, adaptive=True),
    Method("dopri5", 5, adaptive=True),
    Method("bosh3", 3, adaptive=True),
    Method("fehlberg2", 2, adaptive=True),
    Method("adaptive_heun", 2, adaptive=True),
    Method("midpoint", 2, 2),
    Method("heun2", 2, 2),
    Method("heun3", 3, 3),
    Method("rk4", 4, 4),
    Method("explicit_adams", 4),
    Method("implicit_adams", 4),
)


@torch.no_grad()
def integrate(
    method: Method,
    model: EpsModel,
    x: Tensor,
    grid: Array,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_nfe: int = 100_000,
) -> Result:
    """Integrate x (batch, *shape) over the grid; only its ends matter to an adaptive method.

    The error of an adaptive method is a norm over the whole batch. InputError if the tolerance cannot be met in the dtype
    of x, or takes more than `max_nfe` evaluations; it says at which λ.
    """
    if not np.isfinite(grid).all():
        raise InputError(f"{method.name} integrates over finite λ only: leave the step to λ = +∞ out (--no-denoise)")
    if x.device.type == "mps":
        raise InputError(f"{method.name} keeps its time in float64, which mps lacks: use a planned solver, or --device cpu")
    if not (0 < rtol < np.inf and 0 < atol < np.inf):
        raise InputError(f"rtol and atol must be positive and finite, not {rtol:g} and {atol:g}")
    f, nfe, calls, reached = drift(model), model.nfe, model.calls, float(grid[0])

    def func(lam: Tensor, x: Tensor) -> Tensor:
        nonlocal reached
        reached = float(lam)
        if model.nfe - nfe >= max_nfe:
            raise InputError(
                f"{method.name} spent {max_nfe} evaluations by λ = {reached:.6g} of {grid[-1]:.6g}: loosen rtol "
                "and atol, or raise max_nfe"
            )
        dx = f(reached, x)
        refuse_nonfinite(model.nfe - nfe, reached, dx)  # an adaptive method looks at the host each step anyway
        return dx

    t = torch.from_numpy(grid).to(x.device)
    if method.adaptive:
        t = t[[0, -1]]
        options: dict[str, Any] = {"step_t": t[1:], "first_step": (t[1] - t[0]) / 100}
    else:
        points, t = t, t[[0, -1]]
        options = {"grid_constructor": lambda func, y0, t: points}
        if method.name.endswith("adams"):
            options["max_order"] = method.order + 1  # torchdiffeq's count; at its own default, 12, it diverges here
            if not np.allclose(np.diff(grid), np.diff(grid)[0], rtol=1e-6):
                raise InputError(f"the coefficients of {method.name} are those of equal steps in λ: use --grid logsnr")
    try:
        states = odeint(func, x, t, rtol=rtol, atol=atol, method=method.name, options=options)
    except AssertionError as error:
        raise InputError(
            f"{method.name} stopped at λ = {reached:.6g} after {model.nfe - nfe} evaluations ({error}): loosen "
            "rtol and atol, or use --dtype float64"
        ) from error
    return Result(states[-1], model.nfe - nfe, model.calls - calls)
