"""torchdiffeq's integrators on dx/dλ (diffode.ode), by their own names.

They know nothing of the equation's exact linear part and look at x itself, so they are the honest baseline for solvers that
do. Time is float64 and runs from the first to the last value of the grid; adaptive methods are given `step_t` and a first
step, without which torchdiffeq calls the model beyond the end. They need finite ends: no step to λ = +∞.
"""

from __future__ import annotations

import warnings
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
    """A method of torchdiffeq. evaluations: a step, 0 where steps differ (the Adams methods) or are adaptive.

    max_order: torchdiffeq's option that makes an Adams method one of the given order; at its default, 12, they diverge here.
    """

    name: str
    order: int
    evaluations: int = 0
    adaptive: bool = False
    max_order: int = 0


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
    Method("explicit_adams", 4, max_order=5),
    Method("implicit_adams", 4, max_order=4),
)


@torch.no_grad()
def integrate(
    method: Method, model: EpsModel, x: Tensor, grid: Array, *, rtol: float = 1e-5, atol: float = 1e-5, max_nfe: int = 100_000
) -> Result:
    """Integrate x (batch, *shape) over the grid; only its ends matter to an adaptive method.

    The error of an adaptive method is a norm over the whole batch, so an image depends on its batch within the tolerance.
    InputError, with the λ, if the tolerance cannot be met in the dtype of x, or takes more than `max_nfe` evaluations.
    """
    _check(method, x, grid, rtol, atol)
    f, nfe, calls, reached = drift(model), model.nfe, model.calls, float(grid[0])

    def func(lam: Tensor, x: Tensor) -> Tensor:
        nonlocal reached
        reached, spent = float(lam), model.nfe - nfe
        if spent >= max_nfe:
            raise InputError(
                f"{method.name} spent {spent} evaluations by λ = {reached:.6g} of {grid[-1]:.6g}: loosen rtol and "
                "atol, or raise max_nfe"
            )
        dx = f(reached, x)
        refuse_nonfinite(spent + 1, reached, dx)  # torchdiffeq keeps its time on the device and waits for it anyway
        return dx

    t = torch.from_numpy(grid).to(x.device)
    ends = t[[0, -1]]
    options: dict[str, Any] = {"grid_constructor": lambda func, y0, ends: t}
    if method.adaptive:
        options = {"step_t": ends[1:], "first_step": (ends[1] - ends[0]) / 100}
    if method.max_order:
        options["max_order"] = method.max_order
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Functional iteration did not converge")
            states = odeint(func, x, ends, rtol=rtol, atol=atol, method=method.name, options=options)
    except (AssertionError, UserWarning) as error:
        raise InputError(
            f"{method.name} stopped at λ = {reached:.6g} after {model.nfe - nfe} evaluations ({error}): "
            "loosen rtol and atol, take more steps, or use --dtype float64"
        ) from error
    return Result(states[-1], model.nfe - nfe, model.calls - calls)


def _check(method: Method, x: Tensor, grid: Array, rtol: float, atol: float) -> None:
    """InputError for ends, tolerances, devices and grids that torchdiffeq cannot do."""
    if not np.isfinite(grid).all():
        raise InputError(
            f"{method.name} integrates over finite λ only, not from {grid[0]:g} to {grid[-1]:g}: leave "
            "--denoise out (--no-denoise), or take a planned solver"
        )
    if not (0 < rtol < np.inf and 0 < atol < np.inf):
        raise InputError(f"rtol and atol must be positive and finite, not {rtol:g} and {atol:g}")
    if x.device.type == "mps":
        raise InputError(f"{method.name} keeps its time in float64, which mps lacks: use a planned solver, or --device cpu")
    if method.max_order and not np.allclose(np.diff(grid), np.diff(grid)[0], rtol=1e-6):
        raise InputError(f"the coefficients of {method.name} are those of equal steps in λ: use --grid logsnr")
