"""Inpainting real images: python -m experiments.ddim_paper.inpaint --out docs/inpainting.png --overwrite

The method is solvers/inpainting.py; here real images are completed by it, and drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch import Tensor

from diffode.errors import InputError
from diffode.files import atomic
from diffode.images import writers
from diffode.images.datasets import to_pixels
from diffode.models import pretrained
from diffode.schedule import Schedule
from experiments.common import figures, script_options
from experiments.common.commands import Script
from experiments.common.destinations import refuse_existing
from experiments.common.examples import real_images
from experiments.common.options import OutputName
from experiments.common.terminal import say
from solvers import Budget, Plan, find, inpaint
from solvers.inpainting import with_jumps


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
    completed = inpaint(model, known.repeat_interleave(completions, 0), where, seed=range(n * completions), solver=plan).x
    with atomic(out) as part:
        picture(known, where, completed.unflatten(0, (n, completions))).save(part, format="PNG")
    edges = f"{jump(completed, where):.3f}, in the originals {jump(known, where):.3f}"
    say(
        f"{plan.solver}: {n} images, {completions} completions each, {plan.nfe} NFE, mean jump across the edge of what is known "
        f"{edges}, {out}"
    )


if __name__ == "__main__":
    main()
