"""Interpolation: python -m experiments.ddim_paper.interpolation

Two samples are joined by decoding what lies between their x_T (Song et al., 2021a, section 5.3 and Eq. 67 in appendix D.5):

    x_T(w) = sin((1 − w)θ)/sin θ · x_T(0) + sin(wθ)/sin θ · x_T(1)          cos θ = ⟨x_T(0), x_T(1)⟩ / (‖x_T(0)‖ ‖x_T(1)‖)

θ is that of a pair, over its own pixels. Independent noise in many dimensions is nearly orthogonal and of one norm, and so is all
that slerp puts between. Linear interpolation, for contrast, passes at sqrt((1 − w)² + w²) of the norm, which is no noise that the
network has seen: there is too little of it, and the images lack detail.

Pairs are consecutive seeds, of one label ("same"), or without a label ("none"), where each end is of the class that its noise
leads to, as in the paper. Measured, and averaged over pairs:

    norm       ‖x_T(½)‖ over the mean norm of the ends
    largest    the largest distance of neighbouring images on the path over the distance of its ends; of an even path of n
               steps 1/n and more, of one that jumps 1
    detail     mean square of the differences of neighbouring pixels, of the image at w = ½ over that of the images at both ends
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from diffode.models import pretrained
from diffode.models.pretrained import Pretrained
from diffode.noise import SeededNoise
from experiments.common import figures, results, script_options
from experiments.common.commands import Script, command_line
from experiments.common.markdown import provenance_sentence, table
from experiments.common.terminal import say
from experiments.ddim_paper.common import mean_and_error
from solvers import Budget, Prepared, find, sample

LABELS = {"same": "one label", "none": "no label"}
POINTS = 11  # w = 0, 0.1, ..., 1: an odd number, for there to be a middle
SHOWN = 4  # pairs of a kind in the picture


def slerp(x: Tensor, y: Tensor, w: float) -> Tensor:
    """Spherical linear interpolation of each x[i] with y[i], (batch, *shape), from x at w = 0 to y at w = 1.

    sin(wθ)/sin θ is written w sinc(wθ)/sinc(θ), so that parallel x and y, θ = 0, are interpolated linearly. InputError for
    states of other shapes, for zero, and for opposite ones, which no one great circle joins.
    """
    if x.shape != y.shape:
        raise InputError(f"x and y are of one shape (batch, ...), not {tuple(x.shape)} and {tuple(y.shape)}")
    a, b = x.flatten(1).double(), y.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    if not bool((cosine > -1 + 1e-12).all()):
        raise InputError("there is no one way between opposite states, or from or to zero: draw other noise")
    theta = cosine.clamp(max=1).acos()

    def weight(w: float) -> Tensor:
        ratio = w * torch.sinc(w * theta / math.pi) / torch.sinc(theta / math.pi)
        return ratio.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    return weight(1 - w) * x + weight(w) * y


def lerp(x: Tensor, y: Tensor, w: float) -> Tensor:
    """(1 − w) x + w y."""
    return torch.lerp(x, y, w)


WAYS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"slerp": slerp, "lerp": lerp}


def ends(loaded: Pretrained, pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """x_T of pairs of consecutive seeds, the first of each and the second, (pairs, *image)."""
    schedule = loaded.model.schedule
    like = torch.empty(2 * pairs, *loaded.image, device=loaded.model.device)
    noise = SeededNoise(range(seed, seed + 2 * pairs))(0, like) * float(schedule.sigma(schedule.lam_min))
    return noise[::2], noise[1::2]


def path(loaded: Pretrained, x: Tensor, y: Tensor, *, way: str, labels: str, solver: Prepared) -> tuple[Tensor, Tensor]:
    """x_T(w) between x and y (pairs, *image), and what it is decoded to, both (pairs, POINTS, *image).

    labels: "same", a class for each pair, in turn; or "none".
    """
    model = loaded.model.labelled(torch.arange(len(x)) % loaded.model.classes) if labels == "same" else loaded.model
    between = [WAYS[way](x, y, w) for w in np.linspace(0, 1, POINTS).tolist()]
    return torch.stack(between, 1), torch.stack([sample(model, x=state, solver=solver).x for state in between], 1)


def measure(between: Tensor, decoded: Tensor) -> dict[str, float]:
    """norm, largest and detail of paths (pairs, points, *image), with their standard errors over pairs."""
    middle = between.shape[1] // 2

    def rms(x: Tensor) -> Tensor:
        return x.flatten(2).square().mean(2).sqrt()

    size = rms(between)
    steps, whole = rms(decoded.diff(dim=1)), rms(decoded[:, -1:] - decoded[:, :1])
    across, down = (decoded.diff(dim=dim).flatten(2).square().mean(2) for dim in (-1, -2))
    detail = across + down
    columns = {
        "norm": size[:, middle] / (size[:, 0] + size[:, -1]) * 2,
        "largest": steps.amax(1) / whole[:, 0],
        "detail": detail[:, middle] / (detail[:, 0] + detail[:, -1]) * 2,
    }
    numbers: dict[str, float] = {}
    for name, values in columns.items():
        numbers[name], numbers[f"{name}_se"] = mean_and_error(values)
    return numbers


def picture(paths: Mapping[tuple[str, str], Tensor]) -> Image.Image:
    """A block for each kind of path, under its name: a row for each pair, a column for each w."""
    blocks = []
    weights = [f"{w:.1f}" for w in np.linspace(0, 1, POINTS)]
    for (way, labels), decoded in paths.items():
        sheet = writers.grid(to_pixels(decoded.flatten(0, 1)), columns=POINTS, width=84 * POINTS)
        blocks.append(figures.headed(figures.headed(sheet, weights), [f"{way}, {LABELS[labels]}"]))
    return figures.stacked(blocks)


def report(out: Path) -> str:
    """The table, and what it says, in Markdown."""
    about, rows = results.read(out)
    rows = [row for row in rows if "norm" in row]
    numbers = ("norm", "largest", "detail")
    lines = [
        [row["way"], LABELS[row["labels"]], *(f"{row[name]:.3f} ± {row[f'{name}_se']:.3f}" for name in numbers)] for row in rows
    ]
    head = ["way", "pairs of", "norm of x_T at w = ½", "largest step of the path", "detail at w = ½"]
    return (
        f"{table(head, lines)}\n\nAll are relative to the ends of a path; even steps would be {1 / (POINTS - 1):g} each. "
        f"{about['pairs']} pairs, {about['solver']} at {about['nfe']} NFE on the grid {about['grid']}, ± the standard error over "
        f"pairs. {provenance_sentence(about)}\n"
    )


@click.command(cls=Script)
@script_options.model()
@click.option("--solver", default="ddim", show_default=True, help="Any deterministic solver.")
@click.option("--nfe", default=50, show_default=True, type=click.IntRange(1), help="Evaluations per image.")
@click.option("--grid", default="time", show_default=True, help="Where they are; time is like the paper's τ.")
@click.option("--pairs", default=50, show_default=True, type=click.IntRange(2, 1000), help="Of each kind.")
@script_options.seed("The first.")
@script_options.out("results/interpolation")
@script_options.overwrite
@script_options.fast("2 pairs, 6 NFE")
def main(name: str, solver: str, nfe: int, grid: str, pairs: int, seed: int, out: Path, overwrite: bool, fast: bool) -> None:
    """Join samples by what lies between their noise: slerp, and lerp for contrast."""
    pairs, nfe = (2, 6) if fast else (pairs, nfe)
    if find(solver).stochastic:
        raise InputError(f"{solver} draws noise, and x_T alone does not decide its samples: take a deterministic solver")
    loaded = pretrained.load(name)
    writers.check_shape(loaded.image)
    labels_only = loaded.model.clock == "label"
    prepared = find(solver).prepare(Budget(nfe=nfe, grid=grid), loaded.model.schedule, labels_only=labels_only)
    x, y = ends(loaded, pairs, seed)
    cells = [{"way": way, "labels": labels} for way in WAYS for labels in LABELS if loaded.model.classes or labels == "none"]
    about = {"model": name, "sha256": loaded.sha256, "solver": solver, "nfe": nfe, "grid": grid, "pairs": pairs, "seed": seed}

    def compute(cell: Mapping[str, Any]) -> dict[str, float]:
        return measure(*path(loaded, x, y, **cell, solver=prepared))

    command = command_line()
    rows = results.fill(out, cells, compute, about=about, command=command, overwrite=overwrite, also=(".png",))
    results.finish(rows, out)
    shown = {(cell["way"], cell["labels"]): path(loaded, x[:SHOWN], y[:SHOWN], **cell, solver=prepared)[1] for cell in cells}
    with atomic(results.with_suffix(out, ".png")) as part:
        picture(shown).save(part, format="PNG")
    say(report(out))


if __name__ == "__main__":
    main()
