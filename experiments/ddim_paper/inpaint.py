"""Inpainting real images: python -m experiments.ddim_paper.inpaint --out docs/inpainting.png

After every step the known pixels take the place of what the solver made of them, at the noise level of the step,

    x <- mask (α x_known + σ z) + (1 − mask) x

(Song et al., 2021b, appendix I.2), and at the end exactly. That happens between the rows of any plan, which knows nothing of it.
z is fresh at every step: each is another look at the known pixels, where the same z would be the same look again.

The jumps back of RePaint (Lugmayr et al., 2022) are rows: a step is taken, noise leads back to where it began, and it is taken
again, so that what was made before can agree with what is known now. `again` puts them into the plan of any single-step solver.
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

from diffode.errors import InputError
from diffode.files import atomic
from diffode.images import writers
from diffode.images.datasets import to_pixels
from diffode.model import EpsModel
from diffode.models import pretrained
from diffode.noise import SeededNoise
from diffode.schedule import Schedule
from experiments.common import figures
from experiments.common.commands import Script
from experiments.common.examples import real_images
from solvers import Plan, Stage, sample
from solvers.entries import Planned
from solvers.registry import find
from solvers.sampling import choose_grid

APART = 2**31  # between the seeds of the solver's noise and those of the known pixels' noise; torch takes them modulo 2^32
WINDOW = 3.0  # |λ| within which it is decided what the picture shows


def inpaint(model: EpsModel, known: Tensor, mask: Tensor, seeds: Sequence[int], **how: Any) -> Tensor:
    """Complete known (batch, *shape) where mask, bool, of the same shape or broadcast, is False; row i is that of seeds[i] in any
    batch. how: solver, nfe and options, as sample takes them; InputError for solvers whose samples have no common steps."""
    noise, draws = SeededNoise([(seed + APART) % 2**32 for seed in seeds]), count()
    known, mask = known.to(model.device), mask.to(model.device)

    def replace(x: Tensor, lam: float) -> Tensor:
        alpha, sigma = float(model.schedule.alpha(lam)), float(model.schedule.sigma(lam))
        return torch.where(mask, alpha * known + sigma * noise(next(draws), x), x)

    result = sample(model, shape=tuple(known.shape), seed=seeds, dtype=known.dtype, on_commit=replace, **how)
    return torch.where(mask, known, result.x)


def again(plan: Plan, times: int) -> Plan:
    """The plan with each step towards the data that begins within the window taken `times` more, after jumps back to its begin:

        x <- (α_s/α_t) x + n z          n = σ_s sqrt(1 − e^(−2h))

    InputError for a plan whose steps use evaluations of earlier steps.
    """
    if not times:
        return plan
    stages, made, before, draws = [plan.stages[0]], 0, 0, count(1)  # evaluations made in this plan and in the one given
    for step in _steps(plan):
        s, t = stages[-1], step[-1]
        turns = 1 + times * (abs(s.lam) < WINDOW and s.lam < t.lam < np.inf)
        if any(j < before for stage in step for j in stage.c):
            raise InputError(
                f"{plan.solver} uses evaluations of earlier steps, so its steps cannot be taken again: leave --jumps out"
            )
        for turn in range(1, turns + 1):
            fresh = {old: next(draws) for old in sorted({stage.draw for stage in step if stage.draw is not None})}
            for stage in step:
                c = {j - before + made: value for j, value in stage.c.items()}
                renewed = fresh[stage.draw] if stage.draw is not None else None
                evaluate = stage.evaluate and (stage is not t or turn == turns)
                stages.append(dataclasses.replace(stage, c=c, draw=renewed, evaluate=evaluate))
            made += s.evaluate + sum(stage.evaluate for stage in step[:-1])
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
    """The plan of a solver at 20 NFE, with η = 1 and 3 jumps a step where it can have them, unless told otherwise."""
    entry = find(solver)
    options = {"eta": 1.0 if eta is None else eta} if eta is not None or "eta" in entry.options else {}
    nfe = 20 if nfe is None and not isinstance(entry, Planned) else nfe
    lams, options = choose_grid(entry, schedule, nfe=nfe, steps=None, grid="logsnr", denoise=False, **options)
    plan = entry.plan(lams, schedule, **options)
    try:
        return again(plan, 3 if jumps is None else jumps)
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


def picture(known: Tensor, mask: Tensor, made: Tensor) -> Image.Image:
    """A row an image: the original, what is known of it (the rest grey), and its completions, made (n, completions, c, h, w)."""
    rows = torch.cat([known[:, None], torch.where(mask, known, 0.0)[:, None], made], 1)
    sheet = writers.grid(to_pixels(rows.flatten(0, 1)), columns=rows.shape[1], width=84 * rows.shape[1])
    return figures.headed(sheet, ["original", "known", *(f"{i}" for i in range(1, made.shape[1] + 1))])


@click.command(cls=Script, resumable=False)
@click.option("--solver", default="ddim", show_default=True, help="Any planned solver.")
@click.option("--nfe", type=click.IntRange(1), help="What the solver spends without jumps. [default: 20]")
@click.option("--eta", type=float, help="Noise of the solver. [default: 1, if it has the option]")
@click.option(
    "--jumps", type=click.IntRange(0), help="How often each step in the middle is taken again. [default: 3, if it can be]"
)
@click.option("--n", default=8, show_default=True, type=click.IntRange(1, 100), help="Images.")
@click.option("--completions", default=6, show_default=True, type=click.IntRange(1, 100), help="Of each image.")
@click.option("--mask", default="half", show_default=True, type=click.Choice(list(MASKS)), help="What is missing.")
@click.option("--out", default="samples/inpainting.png", show_default=True, type=click.Path(path_type=Path))
@click.option("--fast", is_flag=True, help="Only to see that it runs: 2 images, 2 completions, no jumps, few NFE.")
def main(**o: Any) -> None:
    """Complete real images, of which a part is missing, with the shipped network."""
    if o["fast"]:
        o.update(n=2, completions=2, nfe=o["nfe"] or 6, jumps=0)
    n, k = o["n"], o["completions"]
    model = pretrained.load("fashion").model
    plan = make_plan(o["solver"], model.schedule, o["nfe"], o["eta"], o["jumps"])
    known, labels = real_images(n)
    mask = MASKS[o["mask"]](*known.shape[2:])
    model = model.labelled(labels.repeat_interleave(k))
    made = inpaint(model, known.repeat_interleave(k, 0), mask, range(n * k), solver=plan)
    with atomic(o["out"]) as part:
        picture(known, mask, made.unflatten(0, (n, k))).save(part, format="PNG")
    jumps = f"mean jump across the edge of what is known {jump(made, mask):.3f}, in the originals {jump(known, mask):.3f}"
    click.echo(f"{plan.solver}: {n} images, {k} completions each, {plan.nfe} NFE, {jumps}, {o['out']}")


if __name__ == "__main__":
    main()
