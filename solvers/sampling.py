"""sample and encode: from a model, a solver's name and a budget to images, and from images to noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.noise import SeededNoise, seeds_of
from solvers.budget import Budget, Prepared
from solvers.execute import refuse_nonfinite
from solvers.hooks import Hooks, OnCommit, OnStep
from solvers.plan import Plan
from solvers.registry import find
from solvers.result import Result


def sample(
    model: EpsModel,
    *,
    shape: tuple[int, ...] = (),
    x: Tensor | None = None,
    solver: str | Plan | Prepared = "ddim",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | None = None,
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
    torchdiffeq's adaptive methods, whose error is a norm over the batch, if per_sample=True.

    solver: what `find` knows, with `options` of its own (eta, r1, rtol, ...); a Plan; or what `prepare` returned, which has its
    budget and options. nfe, steps, grid, denoise: see Budget. x: the state to begin with at the grid's first λ, as `encode` makes
    it, instead of a shape and noise; in its dtype and on its device. A module is in eval mode meanwhile. dtype: of the state.
    device: by default that of the network. on_commit, on_step, trajectory: see Hooks.

    Raises InputError for what cannot be done, and for a network output that is not finite, with its λ.
    """
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"the state is float32 or float64, not {dtype}: for a network in half precision use model.autocasted")
    prepared = _prepared(solver, Budget(nfe, steps, grid, denoise), model, options)
    lams = prepared.grid
    if (x is None) != bool(shape):
        raise InputError("give either a shape (batch, ...) to draw noise of, or x, a state to begin with")
    if x is None and lams[-1] < lams[0]:
        raise InputError(f"{prepared.solver.name} is a plan from data to noise: give the data as x")
    noise = SeededNoise(seeds_of(seed, shape[0] if x is None else len(x)))
    if x is None:
        like = torch.empty(shape, dtype=dtype, device=model.device if device is None else device)
        x = noise(0, like) * float(model.schedule.sigma(lams[0]))
    with _evaluating(model.network):
        result = prepared.solve(model, x, Hooks(noise, on_commit, on_step, trajectory))
        if not result.x.is_meta and not torch.isfinite(result.x).all():  # one look at the end; only then find where it began
            prepared.solve(model.watched(refuse_nonfinite), x, Hooks(noise))
            raise InputError(
                f"the state of {prepared.solver.name} overflowed though every network output was finite: use more evaluations or "
                "another grid"
            )
    return result


def encode(
    model: EpsModel,
    x: Tensor,
    *,
    solver: str | Prepared = "ddim",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | None = None,
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
    prepared = _prepared(solver, Budget(nfe, steps, grid), model, options, backwards=True)
    if prepared.solver.fixed_grid is not None:
        raise InputError(f"{prepared.solver.name} is a plan, whose grid is one way: encode takes a solver's name")
    with _evaluating(model.network):
        return prepared.solve(model, x, Hooks(None, on_commit, on_step, trajectory))


def _prepared(
    solver: str | Plan | Prepared, budget: Budget, model: EpsModel, options: dict[str, Any], *, backwards: bool = False
) -> Prepared:
    """The solver with its budget settled; InputError for a budget or options beside one that is."""
    if not isinstance(solver, Prepared):
        labels_only = model.clock == "label"
        return find(solver).prepare(budget, model.schedule, labels_only=labels_only, backwards=backwards, **options)
    if options or budget != Budget():
        raise InputError(f"{solver.solver.name} has been prepared: leave nfe, steps, grid, denoise and options out")
    return solver


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
