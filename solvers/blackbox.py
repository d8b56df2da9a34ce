"""torchdiffeq's integrators, by their own names, on du/dv in λ, σ̄ or t (diffode.ode.VARIABLES).

They know nothing of the equation's exact linear part and look at the state itself, so they are the honest baseline for solvers
that do. The model is called between the two ends of the grid and nowhere else: an adaptive method is given `step_t` and a first
step, without which torchdiffeq calls beyond the end, and what rounds out of the ends (a float32 state rounds v to float32) is
put back. They need finite ends: no step to λ = +∞.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchdiffeq import odeint

from diffode.checks import choice, flag
from diffode.errors import InputError
from diffode.evaluation import Counter
from diffode.model import EpsModel
from diffode.ode import VARIABLES, Variable, drift
from diffode.schedule import Array, Schedule
from solvers.batches import of_batch
from solvers.execute import refuse_nonfinite
from solvers.hooks import NO_HOOKS, Hooks
from solvers.result import Result
from solvers.step_control import tolerances


@dataclass(frozen=True)
class Method:
    """A method of torchdiffeq. nfe_per_step: evaluations, 0 where steps differ (the Adams methods) or are adaptive.

    max_order: torchdiffeq's option that makes an Adams method one of the given order; at its default, 12, they diverge here.
    """

    name: str
    order: int
    nfe_per_step: int = 0
    adaptive: bool = False
    max_order: int = 0

    @property
    def has_tolerance(self) -> bool:
        """Whether it heeds rtol and atol."""
        return self.adaptive or self.name == "implicit_adams"


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


class _Equation:
    """du/dv as torchdiffeq calls it: between the ends of the grid, counted, and finite. lam: where it was called last."""

    def __init__(self, name: str, model: EpsModel, form: Variable, grid: Array, max_nfe: int) -> None:
        self.name, self.max_nfe = name, max_nfe
        self.counter = Counter()
        self.f, self.lam_of = drift(model, form, self.counter), form.inverse(model.schedule, grid[0], grid[-1])
        self.lam, self.lam_t = float(grid[0]), float(grid[-1])

    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        self.lam = self.lam_of(float(v))
        nfe = self.counter.nfe
        if nfe >= self.max_nfe:
            raise InputError(
                f"{self.name} spent {nfe} evaluations by λ = {self.lam:.6g} of {self.lam_t:.6g}: loosen rtol and atol, or raise "
                "max_nfe"
            )
        du = self.f(self.lam, u)
        refuse_nonfinite(nfe + 1, self.lam, du)  # torchdiffeq keeps its time on the device and waits for it anyway
        return du

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What torchdiffeq gives up with, as an InputError that says where."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Functional iteration did not converge")
                yield
        except (AssertionError, UserWarning) as error:
            raise InputError(
                f"{self.name} stopped at λ = {self.lam:.6g} after {self.counter.nfe} evaluations "
                f"({str(error).partition(':')[0]}): loosen rtol and atol, take more steps, or use float64"
            ) from error


@torch.no_grad()
def integrate(
    method: Method,
    model: EpsModel,
    x: Tensor,
    grid: Array,
    hooks: Hooks = NO_HOOKS,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_nfe: int = 100_000,
    variable: str = "lam",
    per_sample: bool = False,
) -> Result:
    """Integrate x (batch, *shape) over the grid, or back over one reversed, in `variable`, a name in ode.VARIABLES; an adaptive
    method heeds the grid's ends only.

    An adaptive method accepts a step if the rms of error/(atol + rtol |u|) is at most 1, u being the state that goes with the
    variable: x in lam and t, y = x/α in sigma_bar, as large as σ̄ where it is noisy. The rms is over the whole batch, so an image
    depends on its batch within the tolerance; with per_sample each sample is integrated alone, one after the other, and does
    not. Then nfe is the most that any sample took, and max_nfe the most that one may.
    hooks.trajectory: the states at the λ of the grid; those of an adaptive method are torchdiffeq's interpolation between steps,
    whose error is of order h⁵ for dopri5 and dopri8 and of order h² for the others, whatever the tolerance.
    On a DDPM table dλ/dt jumps at every label: in t, tolerances below 1e-4 cost many evaluations there and are not met.

    InputError, with the λ reached and the evaluations spent, if the tolerance cannot be met in the dtype of x or takes more
    than max_nfe evaluations, or if the network's output is not finite.
    """
    _check(method, x, grid, variable)
    per_sample, (rtol, atol, max_nfe) = flag("per_sample", per_sample), tolerances(rtol, atol, max_nfe)
    schedule, form = model.schedule, VARIABLES[variable]
    v = torch.as_tensor(_points(method, form, schedule, grid), device=x.device)
    lams, stops = (grid, v) if hooks.trajectory else (grid[[0, -1]], v[[0, -1]])

    def solve(name: str, model: EpsModel, x: Tensor) -> tuple[Tensor, Counter]:
        equation, u = _Equation(name, model, form, grid, max_nfe), x / form.scale(schedule, grid[0])
        with equation.explained():
            states = odeint(equation, u, stops, rtol=rtol, atol=atol, method=method.name, options=_options(method, v))
        return states, equation.counter

    parts = [(method.name, model, x)]
    if per_sample:
        model = of_batch(model, len(x))
        parts = [(f"{method.name} on sample {i}", model.taking([i]), x[i : i + 1]) for i in range(len(x))]
    states, counters = zip(*(solve(*part) for part in parts), strict=True)
    path = [u * form.scale(schedule, lam) for lam, u in zip(lams, torch.cat(states, 1), strict=True)]
    trajectory = zip(lams, path, strict=True) if hooks.trajectory else ()
    return Result(
        path[-1],
        max(counter.nfe for counter in counters),
        sum(counter.calls for counter in counters),
        trajectory=tuple((float(lam), x.to("cpu", copy=True)) for lam, x in trajectory),
        counters=counters if per_sample else (),
    )


def _points(method: Method, form: Variable, schedule: Schedule, grid: Array) -> Array:
    """The grid in the variable; InputError for steps that an Adams method cannot do."""
    v = np.ascontiguousarray(form.of(schedule, grid))
    if method.max_order and not np.allclose(np.diff(v), np.diff(v)[0], rtol=1e-6):
        raise InputError(
            f'the coefficients of {method.name} are those of equal steps in {form.symbol}: use grid="logsnr" for those in λ, '
            'grid="time" for those in t, or a list of λ'
        )
    return v


def _options(method: Method, v: Tensor) -> dict[str, Any]:
    """The options of torchdiffeq for these points of the variable; it turns signs itself where they decrease."""
    if method.adaptive:
        return {"step_t": v[-1:], "first_step": (v[-1] - v[0]).abs() / 100}
    order = {"max_order": method.max_order} if method.max_order else {}
    return {"grid_constructor": lambda func, y0, ends: v, **order}


def _check(method: Method, x: Tensor, grid: Array, variable: str) -> None:
    """InputError for variables, ends and devices that torchdiffeq cannot do."""
    choice("variable", variable, VARIABLES)
    if not np.isfinite(grid).all():
        raise InputError(
            f"{method.name} integrates over finite λ only, not from {grid[0]:g} to {grid[-1]:g}: leave denoise out, give a grid "
            "of finite λ, or take a planned solver"
        )
    if x.device.type == "mps":
        raise InputError(f"{method.name} keeps its time in float64, which mps lacks: use a planned solver, or the CPU")
