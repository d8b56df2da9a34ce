"""Inpainting real images: python -m experiments.ddim_paper.inpaint --out docs/inpainting.png --overwrite

After every step the known pixels take the place of what the solver made of them, at the noise level of the step,

    x <- mask (α x_known + σ z) + (1 − mask) x

(Song et al., 2021b, appendix I.2), and at the end exactly. That happens between the rows of any plan, which knows nothing of it.
z is fresh at every step, so that each step sees the known pixels under other noise.

The jumps back of RePaint (Lugmayr et al., 2022) are stages of the plan: a step is taken, noise leads back to where it began, and
it is taken again, so that the new pixels come to agree with the known ones. `with_jumps` puts them into the plan of any
single-step solver.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffode import checks
from diffode.calling import check_state
from diffode.errors import InputError
from diffode.files import atomic
from diffode.images import writers
from diffode.images.datasets import to_pixels
from diffode.model import EpsModel
from diffode.models import pretrained
from diffode.noise import SeededNoise
from diffode.schedule import Schedule
from experiments.common import figures, script_options
from experiments.common.commands import Script
from experiments.common.destinations import refuse_existing
from experiments.common.examples import real_images
from experiments.common.options import OutputName
from experiments.common.terminal import say
from solvers import Budget, Plan, Stage, find, sample

APART = 2**31  # between the seeds of the solver's noise and those of the known pixels' noise; torch takes them modulo 2^32
WINDOW = 3.0  # |λ| below which the composition of the picture is decided


def inpaint(model: EpsModel, known: Tensor, mask: Tensor, seeds: Sequence[int], **how: Any) -> Tensor:
    """Complete known (batch, *shape) where mask, bool or of 0 and 1, of the same shape or broadcast, is False.

    Completion i depends on seeds[i] and its image, not on the batch. how: solver, nfe and options as `sample` takes them;
    InputError for solvers whose samples have no common steps.
    """
    mask = _known(mask, check_state("known", known))
    noise, draws = SeededNoise([(seed + APART) % 2**32 for seed in seeds]), count()
    known, mask = known.to(model.device), mask.to(model.device)

    def replace(x: Tensor, lam: float) -> Tensor:
        alpha, sigma = float(model.schedule.alpha(lam)), float(model.schedule.sigma(lam))
        return torch.where(mask, alpha * known + sigma * noise(next(draws), x), x)

    result = sample(model, shape=tuple(known.shape), seed=seeds, dtype=known.dtype, on_commit=replace, **how)
    return torch.where(mask, known, result.x)


def _known(mask: Tensor, known: Tensor) -> Tensor:
    """The mask as bool; InputError for values between 0 and 1, by which x would lose variance, and for another shape."""
    expected = f"a tensor of True where a pixel is known and False where it is not, {tuple(known.shape)} or broadcast to it"
    try:
        fits = torch.broadcast_shapes(mask.shape, known.shape) == known.shape
    except (AttributeError, TypeError, RuntimeError):
        fits = False
    if not isinstance(mask, Tensor) or not fits:
        raise checks.wrong("mask", expected, mask)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError("`mask` must be 1 where a pixel is known and 0 where it is not, with nothing between: give mask > 0.5")
    return mask.bool()


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


def make_plan(solver: str, schedule: Schedule, nfe: int | None, eta: float | None, jumps: int | None) -> Plan:
    """The plan of a solver; None is 20 NFE, η = 1 if it has that option, and 3 jumps for each step if they are possible."""
    found = find(solver)
    if not found.has_plan:
        raise InputError(f"{solver} has no plan, and no states that all samples have in common: take a planned solver")
    options: dict[str, Any] = {"eta": 1.0 if eta is None else eta} if eta is not None or "eta" in found.options else {}
    nfe = 20 if nfe is None and found.fixed_grid is None else nfe
    plan = found.prepare(Budget(nfe=nfe), schedule, **options).plan
    assert plan is not None
    try:
        return with_jumps(plan, 3 if jumps is None else jumps)
    except InputError:
        if jumps:
            raise
        return plan


def half(height: int, width: int) -> Tensor:
    """The left half is known; (1, height, width)."""
    return (torch.arange(width) < width // 2).expand(1, height, width)


def box(height: int, width: int) -> Tensor:
    """All but a box in the middle, of half the height and width, is known; (1, height, width)."""
    rows, columns = ((torch.arange(n) >= n // 4) & (torch.arange(n) < n - n // 4) for n in (height, width))
    return ~(rows[:, None] & columns)[None]


MASKS = {"half": half, "box": box}


def jump(x: Tensor, mask: Tensor) -> float:
    """The mean absolute difference of neighbouring pixels of which one is known and one is not, for x (batch, c, h, w)."""
    mask = mask.expand_as(x)
    return float(torch.cat([x.diff(dim=dim).abs()[mask.diff(dim=dim)] for dim in (2, 3)]).mean())


def picture(known: Tensor, mask: Tensor, completed: Tensor) -> Image.Image:
    """A row for each image: the original, what is known of it (the rest grey), and completed, (n, completions, c, h, w)."""
    rows = torch.cat([known[:, None], torch.where(mask, known, 0.0)[:, None], completed], 1)
    sheet = writers.grid(to_pixels(rows.flatten(0, 1)), columns=rows.shape[1], width=84 * rows.shape[1])
    return figures.headed(sheet, ["original", "known", *(f"{i}" for i in range(1, completed.shape[1] + 1))])


@click.command(cls=Script, resumable=False)
@click.option("--solver", default="ddim", show_default=True, help="Any planned solver.")
@click.option("--nfe", type=click.IntRange(1), help="Evaluations without jumps. [default: 20]")
@click.option("--eta", type=float, help="Noise of the solver. [default: 1, if it has the option]")
@click.option("--jumps", type=click.IntRange(0), help="Repetitions of each step in the middle. [default: 3, if possible]")
@click.option("--n", default=8, show_default=True, type=click.IntRange(1, 100), help="Images.")
@click.option("--completions", default=6, show_default=True, type=click.IntRange(1, 100), help="Of each image.")
@click.option("--mask", default="half", show_default=True, type=click.Choice(list(MASKS)), help="What is missing.")
@click.option("--out", default="samples/inpainting.png", show_default=True, type=OutputName())
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@script_options.fast("2 images, 2 completions, no jumps, few NFE")
def main(
    solver: str,
    nfe: int | None,
    eta: float | None,
    jumps: int | None,
    n: int,
    completions: int,
    mask: str,
    out: Path,
    overwrite: bool,
    fast: bool,
) -> None:
    """Complete real images, of which a part is missing, with the shipped network."""
    refuse_existing([out], overwrite=overwrite)
    if fast:
        n, completions, nfe, jumps = 2, 2, nfe or 6, 0
    model = pretrained.load("fashion").model
    plan = make_plan(solver, model.schedule, nfe, eta, jumps)
    known, labels = real_images(n)
    where = MASKS[mask](*known.shape[2:])
    model = model.labelled(labels.repeat_interleave(completions))
    completed = inpaint(model, known.repeat_interleave(completions, 0), where, range(n * completions), solver=plan)
    with atomic(out) as part:
        picture(known, where, completed.unflatten(0, (n, completions))).save(part, format="PNG")
    edges = f"{jump(completed, where):.3f}, in the originals {jump(known, where):.3f}"
    say(
        f"{plan.solver}: {n} images, {completions} completions each, {plan.nfe} NFE, mean jump across the edge of what is known "
        f"{edges}, {out}"
    )


if __name__ == "__main__":
    main()
