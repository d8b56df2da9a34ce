"""sample and encode: from a model, a solver's name and a budget to images, and from images to noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from diffode import checks
from diffode.calling import check_device, check_state
from diffode.errors import InputError, in_words
from diffode.model import EpsModel
from diffode.noise import SeededNoise, seeds_of
from solvers.budget import Budget, Prepared
from solvers.hooks import Hooks, OnCommit, OnStep
from solvers.options import refuse_unknown
from solvers.plan import Plan
from solvers.registry import find
from solvers.result import Result


def sample(
    model: EpsModel,
    *,
    shape: Sequence[int] | None = None,
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
    torchdiffeq's adaptive methods, whose error is a norm over the batch, if per_sample=True; but for the rounding of the network,
    which may depend on the size of the batch.

    solver: what `find` knows, with `options` of its own (eta, r1, rtol, ...); a Plan; or what `prepare` returned, which has its
    budget and options. nfe, steps, grid, denoise: see Budget. x: the state to begin with at the grid's first λ, as `encode` makes
    it, instead of a shape and noise; in its dtype (the loop in float32, if that is half precision) and on its device. dtype: of
    the state. device: by default that of the network. on_commit, on_step, trajectory: see Hooks. A module is put into eval mode.

    Raises InputError for what cannot be done, and for a network output that is not finite, with its λ.
    """
    if dtype not in (torch.float32, torch.float64):
        expected = "torch.float32 or torch.float64, those of a state (for a network in half precision use model.autocasted)"
        raise checks.wrong("dtype", expected, dtype)
    prepared = _prepared(solver, Budget(nfe, steps, grid, denoise), model, options)
    lams = prepared.grid
    if (x is None) == (shape is None):
        raise InputError("give either a shape (batch, ...) to draw noise of, or x, a state to begin with")
    if x is None and lams[-1] < lams[0]:
        raise InputError(f"{prepared.solver.name} is a plan from data to noise: give the data as x")
    batch = checks.sizes("shape", shape, "(batch, 1, 28, 28)") if x is None else check_state("x", x).shape
    noise = SeededNoise(seeds_of(seed, batch[0]))
    if x is None:
        place = check_device("device", model.device if device is None else device)
        if device is None and place.type == "meta":
            raise InputError("the network is on meta, where tensors hold no numbers: load its weights onto a device")
        try:
            like = torch.empty(batch, dtype=dtype, device=place)
        except RuntimeError as error:
            raise InputError(f"a state of shape {batch} does not fit into the memory of {place}: {in_words(error)}") from error
        x = noise(0, like) * float(model.schedule.sigma(lams[0]))
    with _evaluating(model.network):
        return prepared.solve(model, x, Hooks(noise, on_commit, on_step, trajectory))


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
    5.4). Result.x is x_T, and sample(model, x=x_T, ...) leads back to x up to the error of both. In the dtype of x (the loop in
    float32, if that is half precision) and on its device.

    InputError for solvers that draw noise, for a ready plan, whose grid is one way, for grids with an infinite end, and for a
    network output that is not finite, with its λ.
    """
    if "denoise" in options:
        raise InputError("encode begins at the clean end of the grid, where nothing is left to denoise: leave denoise out")
    prepared = _prepared(solver, Budget(nfe, steps, grid), model, options, backwards=True)
    if prepared.solver.fixed_grid is not None:
        raise InputError(f"{prepared.solver.name} is a plan, whose grid is one way: encode takes a solver's name")
    check_state("x", x)
    with _evaluating(model.network):
        return prepared.solve(model, x, Hooks(None, on_commit, on_step, trajectory))


def _prepared(
    solver: str | Plan | Prepared, budget: Budget, model: EpsModel, options: dict[str, Any], *, backwards: bool = False
) -> Prepared:
    """The solver with its budget settled; InputError for a budget or options beside one that is."""
    checks.instance("model", model, EpsModel, "an EpsModel, as EpsModel(network, schedule)")
    if not isinstance(solver, Prepared):
        found = find(solver)
        refuse_unknown(found.name, found.options, options)  # before they meet the parameters of `prepare`
        return found.prepare(budget, model.schedule, labels_only=model.clock == "label", backwards=backwards, **options)
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
