"""Inpainting: completing what is known of an image, by any planned solver.

After every step the known pixels take the place of what the solver made of them, at the noise level of the step,

    x <- α x_known + σ z         where a pixel is held

(Song et al., 2021b, appendix I.2), and at the end exactly. z is fresh at every step, so that each sees the known pixels under
other noise. That happens between the rows of any plan, which knows nothing of it.

A mask between 0 and 1 says how long a pixel is held: mask m for the first part m of the steps, and it is free afterwards
(Differential Diffusion, Levin and Fried, 2023). So a pixel is at each step either of the forward process or of the solver, and
has the variance of the step; m x_known + (1 − m) x would have lost some of it, down to a half.

The jumps back of RePaint (Lugmayr et al., 2022) are stages of the plan: a step is taken, noise leads back to where it began, and
it is taken again, so that the new pixels come to agree with the known ones. On Gaussian data the mean and the variance of what is
completed come the nearer to those of the conditional distribution, the more often a step is repeated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import checks
from diffode.calling import check_state
from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.noise import SeededNoise, seeds_of
from solvers.budget import Budget, Prepared
from solvers.hooks import OnStep
from solvers.plan import Plan, Stage
from solvers.result import Result
from solvers.sampling import sample, settled
from solvers.starts import check_shape

APART = 2**31  # between the seeds of the solver's noise and those of the known pixels' noise; torch takes them modulo 2^32
WINDOW = 3.0  # |λ| below which the composition of the picture is decided
MOST_REPETITIONS = 100  # RePaint takes 10


def inpaint(
    model: EpsModel,
    known: Tensor,
    mask: Tensor,
    *,
    seed: int | Sequence[int] = 0,
    solver: str | Plan | Prepared = "ddim",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | None = None,
    denoise: bool = False,
    resample: int = 0,
    noise: str = "seeded",
    on_step: OnStep | None = None,
    trajectory: bool = False,
    **options: Any,
) -> Result:
    """Complete known (batch, *shape), of which mask says what is known; Result.x is `known` where the mask is 1.

        inpaint(model, images, mask, solver="ddim", eta=1.0, nfe=50, resample=3)

    mask: of the shape of known, or broadcast to it: True or 1 is known, False or 0 is not, m between is held for the first part
    m of the steps. resample: how often each step that begins at |λ| < 3 is repeated (RePaint), up to 100 times, each time for
    the evaluations of a step: at most (resample + 1) nfe in all. All else as in `sample`: row i depends on seed + i, or seed[i],
    its image and its mask, not on the batch; in the dtype of known (the loop in float32, if that is half precision).

    InputError for solvers whose samples have no common steps and, with resample, for those that use earlier steps.
    """
    check_shape("known", check_state("known", known).shape, checks.instance("model", model, EpsModel, "an EpsModel"))
    mask = _checked(mask, known).to(model.device)
    prepared = settled(solver, Budget(nfe, steps, grid, denoise), model, options)
    plan = with_jumps(prepared.plan, checks.whole("resample", resample, 0, MOST_REPETITIONS)) if prepared.plan else None
    seeds = seeds_of(seed, len(known))
    fresh, draws = SeededNoise([(one + APART) % 2**32 for one in seeds]), count()
    dtype = torch.promote_types(known.dtype, torch.float32)
    held, lams = known.to(model.device, dtype), np.unique(prepared.grid)

    def replace(x: Tensor, lam: float) -> Tensor:
        alpha, sigma = float(model.schedule.alpha(lam)), float(model.schedule.sigma(lam))
        taken = (np.searchsorted(lams, lam, "right") - 1) / (len(lams) - 1)  # the part of the steps
        return torch.where((mask > float(taken)) | (mask == 1), alpha * held + sigma * fresh(next(draws), x), x)

    result = sample(
        model,
        shape=tuple(known.shape),
        solver=plan or prepared,
        seed=seeds,
        noise=noise,
        dtype=dtype,
        on_commit=replace,
        on_step=on_step,
        trajectory=trajectory,
    )
    return dataclasses.replace(result, x=torch.where(mask == 1, held, result.x).to(known.dtype))


def _checked(mask: Any, known: Tensor) -> Tensor:
    """The mask in float32; InputError for what is none: another shape, or values that are not from 0 to 1."""
    expected = f"a tensor of numbers from 0 (free) to 1 (known), {tuple(known.shape)} or broadcast to it"
    try:
        fits = torch.broadcast_shapes(mask.shape, known.shape) == known.shape
    except (AttributeError, TypeError, RuntimeError):
        fits = False
    numbers = isinstance(mask, Tensor) and not (mask.is_complex() or mask.is_meta)
    if not (fits and numbers and bool(((mask >= 0) & (mask <= 1)).all())):
        raise checks.wrong("mask", expected, mask)
    if known.is_meta:
        raise InputError("`known` is on meta, where tensors hold no numbers: give it on a device")
    if not bool((torch.isfinite(known) | (mask.to(known.device) == 0)).all()):
        raise InputError("`known` has numbers that are not finite where the mask is above 0: give them, or mask them with 0")
    return mask.to(torch.float32)


def with_jumps(plan: Plan, times: int) -> Plan:
    """The plan with each step towards the data that begins within WINDOW repeated `times` times, after jumps back to its start:

        x <- (α_s/α_t) x + n z          n = σ_s sqrt(1 − e^(−2h))

    InputError for a plan whose steps use evaluations of earlier steps.
    """
    if not times:
        return plan
    stages, after, before, draws = [plan.stages[0]], 0, 0, count(1)  # evaluations so far, in the new plan and in the old
    for step in _steps(plan):
        s, t = stages[-1], step[-1]
        turns = 1 + times * (abs(s.lam) < WINDOW and s.lam < t.lam < np.inf)
        if any(j < before for stage in step for j in stage.c):
            raise InputError(f"{plan.solver} uses evaluations of earlier steps, so its steps cannot be repeated: take no jumps")
        for turn in range(1, turns + 1):
            fresh = {old: next(draws) for old in sorted({stage.draw for stage in step if stage.draw is not None})}
            for stage in step:
                c = {j - before + after: value for j, value in stage.c.items()}
                renewed = fresh[stage.draw] if stage.draw is not None else None
                evaluate = stage.evaluate and (stage is not t or turn == turns)
                stages.append(dataclasses.replace(stage, c=c, draw=renewed, evaluate=evaluate))
            after += s.evaluate + sum(stage.evaluate for stage in step[:-1])
            if turn < turns:
                x, h = float(plan.path.alpha(s.lam) / plan.path.alpha(t.lam)), t.lam - s.lam
                n = float(plan.path.sigma(s.lam)) * np.sqrt(-np.expm1(-2 * h))
                stages.append(Stage(s.lam, x, noise=n, draw=next(draws), evaluate=s.evaluate))
        before += s.evaluate + sum(stage.evaluate for stage in step[:-1])
    return dataclasses.replace(plan, solver=f"{plan.solver}, each step {times + 1} times", stages=tuple(stages))


def _steps(plan: Plan) -> list[list[Stage]]:
    """The stages after the start, up to each that commits."""
    steps: list[list[Stage]] = [[]]
    for stage in plan.stages[1:]:
        steps[-1].append(stage)
        steps += [[]] * stage.commit
    return steps[:-1]
