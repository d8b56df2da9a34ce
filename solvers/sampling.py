"""sample and encode: from a model, a solver's name and a budget to images, and from images to noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import checks
from diffode.calling import check_state
from diffode.errors import InputError
from diffode.model import EpsModel
from solvers.batches import concatenated, of_batch, parts_of
from solvers.budget import Budget, Prepared, check_start
from solvers.hooks import Hooks, OnCommit, OnStep
from solvers.options import refuse_unknown
from solvers.plan import Plan
from solvers.progress import with_bar
from solvers.registry import find
from solvers.result import Result
from solvers.starts import Draws, Seed, begin, check_shape


def sample(
    model: EpsModel,
    *,
    n: int | None = None,
    shape: Sequence[int] | None = None,
    x: Tensor | None = None,
    solver: str | Plan | Prepared = "ddim",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | None = None,
    denoise: bool = False,
    from_lam: float | None = None,
    strength: float | None = None,
    seed: Seed = 0,
    noise: str | None = "seeded",
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    on_commit: OnCommit | None = None,
    on_step: OnStep | None = None,
    trajectory: bool = False,
    progress: bool = False,
    **options: Any,
) -> Result:
    """Sample a batch. Result.x has shape (n, *model.shape), or `shape` = (batch, ...), and row i is that of seed + i (or of
    seed[i]) in any batch; with torchdiffeq's adaptive methods, whose error is a norm over the batch, if per_sample=True; but for
    the rounding of the network, which may depend on the size of the batch.

    x: the state to begin with at the grid's first λ, as `encode` makes it, instead of noise; in its dtype (the loop in float32,
    if that is half precision) and on its device. With from_lam or strength x is data, noised to that λ: α x + σ (draw 0).
    solver: what `find` knows, with `options` of its own (eta, r1, rtol, ...); a Plan; or what `prepare` returned, which has its
    budget and options. nfe, steps, grid, denoise, from_lam, strength: see Budget. seed: whole numbers, or a torch.Generator, or a
    list of them, one per sample, which are advanced (GeneratorNoise). noise: "seeded"; "brownian", the increments of one path
    per seed, so that more steps of a stochastic solver converge to the same sample; None: no noise, and x is a state at from_lam.
    batch: at most so many samples at a time. dtype: of the state. device: by default that of the network. on_commit, on_step,
    trajectory: see Hooks. progress: a bar on stderr. A module is in eval mode meanwhile.

    Raises InputError for what cannot be done, and for a network output that is not finite, with its λ.
    """
    if dtype not in (torch.float32, torch.float64):
        expected = "torch.float32 or torch.float64, those of a state (for a network in half precision use model.autocasted)"
        raise checks.wrong("dtype", expected, dtype)
    prepared = settled(solver, Budget(nfe, steps, grid, denoise, from_lam, strength), model, options)
    start, hooks = begin(model, prepared, n, shape, x, dtype, device), Hooks(None, on_commit, on_step, trajectory)
    parts = parts_of(len(start), batch, hooks)
    draws = Draws.of(seed, noise, start, prepared, len(parts))

    def run(model: EpsModel, rows: slice) -> Result:
        source = draws.of_rows(rows)
        return prepared.solve(model, start.state(prepared, model.schedule, rows, source), replace(hooks, noise=source))

    return _in_parts(run, model, prepared, parts, progress)


def encode(
    model: EpsModel,
    x: Tensor,
    *,
    solver: str | Prepared = "ddim",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | None = None,
    to_lam: float | None = None,
    batch: int | None = None,
    on_commit: OnCommit | None = None,
    on_step: OnStep | None = None,
    trajectory: bool = False,
    progress: bool = False,
    differentiable: bool = False,
    **options: Any,
) -> Result:
    """Run a solver backwards, from data x (batch, *shape) at the clean end of the grid to noise at its noisy end, or to to_lam.

    A plan is that of the same grid reversed, of the same order; with ddim it is DDIM inversion (Song et al., 2021a, section
    5.4). Result.x is x_T, and sample(model, x=x_T, ...) leads back to x up to the error of both; from to_lam
    sample(model, x=x_λ, from_lam=to_lam, noise=None, ...) does. In the dtype of x (the loop in float32, if that is half
    precision) and on its device. batch, progress: as in `sample`. differentiable: gradients flow to x and to the network's
    weights, through a planned solver.

    InputError for solvers that draw noise, for a ready plan, whose grid is one way, for grids with an infinite end, and for a
    network output that is not finite, with its λ.
    """
    if "denoise" in options:
        raise InputError("encode begins at the clean end of the grid, where nothing is left to denoise: leave denoise out")
    if to_lam is not None:
        checks.instance("model", model, EpsModel, "an EpsModel, as EpsModel(network, schedule)")
        check_start("to_lam", to_lam := checks.number("to_lam", to_lam), model.schedule)
    prepared = settled(solver, Budget(nfe, steps, grid, from_lam=to_lam), model, options, backwards=True)
    if prepared.solver.fixed_grid is not None:
        raise InputError(f"{prepared.solver.name} is a plan, whose grid is one way: encode takes a solver's name")
    first, last = prepared.grid[[0, -1]]
    if not np.inf > first > last > -np.inf:
        raise InputError(
            f"encode leads from a finite λ to a noisier one, and {prepared.solver.name} has been prepared from {first:g} to "
            f"{last:g}: prepare it with backwards=True, or give its name"
        )
    check_shape("x", check_state("x", x).shape, model)
    hooks = Hooks(None, on_commit, on_step, trajectory)
    parts = parts_of(len(x), batch, hooks)
    gradients = checks.flag("differentiable", differentiable)

    def run(model: EpsModel, rows: slice) -> Result:
        return prepared.solve(model, x[rows], hooks, differentiable=gradients)

    return _in_parts(run, model, prepared, parts, progress)


def _in_parts(
    run: Callable[[EpsModel, slice], Result], model: EpsModel, prepared: Prepared, parts: list[slice], progress: bool
) -> Result:
    """run(model, rows) of every part, with the model that is of its rows, as one result."""
    with _evaluating(model), with_bar(progress, of_batch(model, parts[-1].stop), prepared, parts) as watched:
        if len(parts) == 1:
            return run(watched, parts[0])
        return concatenated([run(watched.taking(range(rows.start, rows.stop)), rows) for rows in parts])


def settled(
    solver: str | Plan | Prepared, budget: Budget, model: EpsModel, options: dict[str, Any], *, backwards: bool = False
) -> Prepared:
    """The solver with its budget settled; InputError for a budget or options beside one that is."""
    checks.instance("model", model, EpsModel, "an EpsModel, as EpsModel(network, schedule)")
    if not isinstance(solver, Prepared):
        found = find(solver)
        refuse_unknown(found.name, found.options, options)  # before they meet the parameters of `prepare`
        return found.prepare(budget, model.schedule, labels_only=model.clock == "label", backwards=backwards, **options)
    if options or budget != Budget():
        budgeted = "nfe, steps, grid, denoise, from_lam, strength and options"
        raise InputError(f"{solver.solver.name} has been prepared: leave {budgeted} out")
    return solver


@contextmanager
def _evaluating(model: EpsModel) -> Iterator[None]:
    """Put its modules into eval mode, and back into the mode they were in."""
    training = [module for module in model.modules if module.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()
