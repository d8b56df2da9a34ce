"""Samples with their log-density, in one pass: the state (x, α ℓ) of diffode/density.py, from noise to data.

At the noisy end x = σ z has the density N(0, σ² I) exactly, so log p is the log-density of what `sample` returns, up to the
error of the solver alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diffode import checks
from diffode.density import WithDensity
from diffode.errors import InputError
from diffode.likelihood import MOST_PROBES, Likelihood, estimated, normal, random_signs, taking_gradients
from diffode.model import EpsModel
from diffode.noise import SeededNoise, seeds_of
from solvers.budget import Budget, Prepared
from solvers.plan import Plan
from solvers.result import Result
from solvers.sampling import sample, settled
from solvers.starts import begin


@torch.inference_mode(False)  # whose tensors take no gradients, of which the trace is made
def sample_with_log_p(
    model: EpsModel,
    *,
    n: int | None = None,
    shape: Sequence[int] | None = None,
    solver: str | Plan | Prepared = "dpmpp2m",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | None = None,
    probes: int = 1,
    seed: int | Sequence[int] = 0,
    device: str | torch.device | None = None,
    **options: Any,
) -> tuple[Result, Likelihood]:
    """sample(...), in float64, and log p(x) of its x, (batch,), by the same evaluations.

        result, likelihood = sample_with_log_p(model, n=16, nfe=48, probes=4)

    It is the density of x as it is returned, log_likelihood(model, x/α, ...) − d log α with α of the last λ. probes: of the
    trace, 0 for the exact one (see log_likelihood). All else as in `sample`. likelihood.x is the noise that x came from.

    InputError for solvers that draw noise, whose x the ODE does not lead to, and for a grid with an infinite end.
    """
    probes = checks.whole("probes", probes, 0, MOST_PROBES)
    model = taking_gradients(model)
    prepared = settled(solver, Budget(nfe, steps, grid), model, options)
    name, (lam_s, lam_t) = prepared.solver.name, prepared.grid[[0, -1]].tolist()
    if prepared.plan is not None and prepared.plan.stochastic:
        raise InputError(f"{name} draws noise, and log p is known along the ODE alone: take a deterministic solver, or eta=0")
    if not np.isfinite([lam_s, lam_t]).all():
        raise InputError(f"log p needs a grid with finite ends, as [-5, -2, 0, 2, 4.6], not from λ = {lam_s:g} to {lam_t:g}")
    start = begin(model, prepared, n, shape, None, torch.float64, device)
    noise = start.state(prepared, model.schedule, slice(0, len(start)), SeededNoise(seeds_of(seed, len(start))))
    flow = WithDensity.of(model, noise.shape[1:], random_signs(probes, noise, seed) if probes else None)
    scale_s, scale_t = (math.log(math.hypot(*model.schedule.path.at(lam))) * flow.d for lam in (lam_s, lam_t))  # d log s
    ell = normal(noise, float(model.schedule.sigma(lam_s)))[:, None] + scale_s
    result = sample(flow, x=flow.join(noise, ell, lam_s), solver=prepared)
    x, ell = flow.split(result.x, lam_t)
    return dataclasses.replace(result, x=x), estimated(ell - scale_t, probes, noise, result.nfe)
