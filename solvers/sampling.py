"""sample: from a model, a solver's name and a budget to images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import grid as grids
from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.noise import SeededNoise, seeds_of
from diffode.schedule import Array, Schedule
from solvers.entries import BlackBox, Entry, Options, Planned, Solver
from solvers.execute import OnCommit, OnStep, Result, refuse_nonfinite
from solvers.plan import Plan
from solvers.registry import find

DEFAULT_NFE = 50


def sample(
    model: EpsModel,
    *,
    shape: tuple[int, ...] = (),
    x: Tensor | None = None,
    solver: str | Plan = "ddim",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] = "logsnr",
    denoise: bool = False,
    seed: int | Sequence[int] = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    on_commit: OnCommit | None = None,
    on_step: OnStep | None = None,
    trajectory: bool = False,
    **options: Any,
) -> Result:
    """Sample a batch. Result.x has `shape` = (batch, ...), and row i is that of seed + i (or of seed[i]) in any batch; with
    torchdiffeq's adaptive methods, whose error is a norm over the batch, if they are told per_sample.

    solver: a Plan, or what `find` knows; `options` are its own (eta, r1, rtol, ...). nfe: exactly so many evaluations of ε(x, λ),
    about 50 unless told otherwise; or steps. grid: a name in diffode.grid.GRIDS, or increasing values of λ. denoise: the last
    step ends at λ = +∞. x: the state to begin with at the grid's first λ, as `encode` makes it, instead of a shape and noise;
    in its dtype and on its device. A module is in eval mode meanwhile. dtype: of the state. device: that of the network
    unless told otherwise. on_commit, on_step, trajectory: see run.

    Raises InputError for what cannot be done, and for a network output that is not finite, with its λ.
    """
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"the state is float32 or float64, not {dtype}: for a network in half precision use model.autocasted")
    entry = find(solver)
    lams, options = choose_grid(entry, model.schedule, nfe=nfe, steps=steps, grid=grid, denoise=denoise, **options)
    lams = on_labels(entry, model, lams)
    if (x is None) != bool(shape):
        raise InputError("give either a shape (batch, ...) to draw noise of, or x, a state to begin with")
    if x is None and lams[-1] < lams[0]:
        raise InputError(f"{entry.name} is a plan from data to noise: give the data as x")
    noise = SeededNoise(seeds_of(seed, shape[0] if x is None else len(x)))
    if x is None:
        like = torch.empty(shape, dtype=dtype, device=model.device if device is None else device)
        x = noise(0, like) * float(model.schedule.sigma(lams[0]))
    start = x

    def solve(model: EpsModel, **hooks: Any) -> Result:
        with _evaluating(model.network):
            return entry.solve(model, start, lams, noise=noise, **hooks, **options)

    result = solve(model, on_commit=on_commit, on_step=on_step, trajectory=trajectory)
    if not result.x.is_meta and not torch.isfinite(result.x).all():  # one look at the end; only then find where it began
        solve(model.watched(refuse_nonfinite))
        raise InputError(
            f"the state of {entry.name} overflowed though every network output was finite: use more evaluations or another grid"
        )
    return result


def encode(
    model: EpsModel,
    x: Tensor,
    *,
    solver: str = "ddim",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] = "logsnr",
    on_commit: OnCommit | None = None,
    on_step: OnStep | None = None,
    trajectory: bool = False,
    **options: Any,
) -> Result:
    """Run a solver backwards, from data x (batch, *shape) at the clean end of the grid to noise at its noisy end.

    A plan is that of the same grid reversed, of the same order; with ddim it is DDIM inversion (Song et al., 2021a, section
    5.4). Result.x is x_T, and sample(model, x=x_T, ...) leads back to x up to the error of both. In the dtype and on the
    device of x.

    InputError for solvers that draw noise, for a ready plan, whose grid is one way, and for grids with an infinite end.
    """
    entry = find(solver)
    lams, options = choose_grid(entry, model.schedule, nfe=nfe, steps=steps, grid=grid, denoise=False, **options)
    lams = on_labels(entry, model, lams)
    if isinstance(entry, Planned) or not np.isfinite(lams).all():
        raise InputError(f"{entry.name} cannot be run backwards here: encode takes a solver's name and a grid with finite ends")
    with _evaluating(model.network):
        return entry.solve(model, x, lams[::-1], on_commit=on_commit, on_step=on_step, trajectory=trajectory, **options)


def choose_grid(
    entry: Entry,
    schedule: Schedule,
    *,
    nfe: int | None,
    steps: int | None,
    grid: str | Sequence[float],
    denoise: bool,
    **options: Any,
) -> tuple[Array, Options]:
    """The grid on which `entry` spends exactly `nfe` evaluations, or takes `steps`, or about 50 evaluations if neither is given;
    and the options, with what the budget adds to them.

    InputError names the nearest numbers of evaluations if it cannot spend `nfe`.
    """
    if nfe is not None and steps is not None:
        raise InputError("give either nfe (--nfe) or steps (--steps), not both")
    if nfe is not None and nfe > grids.MOST_STEPS:
        raise InputError(f"{nfe} evaluations are more than the {grids.MOST_STEPS} that can be planned")
    if isinstance(entry, Planned):
        lams = np.array(entry.grid if isinstance(grid, str) else [*grid, *[np.inf] * denoise])
        changed = (nfe, steps) != (None, None) or (isinstance(grid, str) and (grid != "logsnr" or denoise))
        entry.plan(lams[:0] if changed else lams, schedule, **options)
        return lams, options
    dense = isinstance(entry, BlackBox) and entry.adaptive  # inner values are where its trajectory is given
    inner = not isinstance(grid, str) and int(np.isfinite(grid).sum()) > 2
    tau = isinstance(grid, str) and grid in grids.TAUS
    if entry.adaptive and (tau or (not dense and (steps is not None or inner))):
        raise InputError(
            f"{entry.name} chooses its own steps: leave --steps, τ and inner values of --grid out, and give --rtol and --atol"
        )
    if not isinstance(grid, str):
        lams = grids.make(grid, schedule, steps, denoise=denoise)
        if nfe is not None and (exact := entry.nfe(lams, schedule, **options)) != nfe:
            raise InputError(f"{entry.name} spends {exact} evaluations on the grid given, not {nfe}: leave --nfe out")
        return lams, options

    def spent(steps: int) -> int:
        any_steps = "time" if tau else grid  # not every number of steps makes a τ
        return entry.nfe(grids.make(any_steps, schedule, steps, denoise=denoise), schedule, **options)

    if steps is None and nfe is None:
        steps = 1 + denoise if entry.adaptive else math.ceil(DEFAULT_NFE / max(entry.evaluations, 1))
    elif nfe is not None and isinstance(entry, Solver) and entry.spend is not None and nfe > 0:
        steps, extra = entry.spend(nfe, denoise)
        options = {**options, **extra}
    elif nfe is not None:
        steps = _steps_that_spend(nfe, entry.name, spent)
    return grids.make(grid, schedule, steps, denoise=denoise), options


def on_labels(entry: Entry, model: EpsModel, lams: Array) -> Array:
    """The grid, snapped to the labels if the model takes whole ones only; that of a ready plan is what it is."""
    return grids.snap(lams, model.schedule) if model.clock == "label" and not isinstance(entry, Planned) else lams


def _steps_that_spend(nfe: int, name: str, spent: Callable[[int], int]) -> int:
    """The steps with spent(steps) = nfe, by bisection, since more steps spend more."""
    low, high = 0, max(nfe, 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(middle) < nfe else (low, middle)
    if spent(high) == nfe:
        return high
    nearest = sorted((abs(n - nfe), n) for n in (spent(steps) for steps in (low, high) if steps))
    raise InputError(
        f"{name} cannot spend exactly {nfe} evaluations: the nearest it can is {' or '.join(str(n) for _, n in nearest)}"
    )


@contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    """Put a module into eval mode, and back into the mode it was in."""
    training = isinstance(network, torch.nn.Module) and network.training
    if training:
        network.eval()
    try:
        yield
    finally:
        if training:
            network.train()
