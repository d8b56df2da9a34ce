"""Consistency: python -m experiments.ddim_paper.consistency

The samples that a deterministic solver makes of one x_T in S steps are the same but for details, whatever S, as x_T alone decides
them (Song et al., 2021a, section 5.2, Fig. 5); those of DDPM (η = 1) have nothing in common but their class. The distance of a
sample x from a reference r of the same x_T is compared with the distance of references of one class from each other:

    distance     d = sqrt(mean over samples and pixels of (x − r)²)
    unrelated    u = the same of r_i − r_j, over all pairs i ≠ j of one class
    correlation  1 − d²/u²

1 is the same image, 0 an unrelated one: where x and r are of one law, E(x − r)² = 2 Var (1 − correlation), E(r_i − r_j)² = 2 Var.
Samples of few steps are not quite of that law, and can be nearer to the mean of their class, or farther, than if independent.

The reference of a deterministic solver is the end of the ODE itself ("truth"), by a solver of high order with many steps; that of
DDPM is its own sample with the most steps. Its noise after x_T is fresh for every S.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch import Tensor

from diffode.files import atomic
from diffode.images import writers
from diffode.images.datasets import to_pixels
from diffode.models import pretrained
from diffode.noise import SeededNoise
from experiments.common import figures, results, script_options
from experiments.common.commands import Script, command_line
from experiments.common.markdown import provenance_sentence, table
from experiments.common.terminal import say
from experiments.ddim_paper.common import prepare_whole_steps
from solvers import find, sample

BUDGETS = (10, 20, 50, 100, 1000)
SOLVERS = ("ddim", "dpm2", "heun", "dpm3", "dpmpp2m", "dpmpp3m", "ipndm", "unipc3", "ddpm")
SWEPT = ("ddim", "ddpm")  # these at all S, and in the picture
MOST = 100  # evaluations of the others
TRUTH: dict[str, Any] = {"solver": "dpm3", "nfe": 600, "grid": "logsnr"}
SHOWN = 6  # rows of the picture
APART = 2**20  # between the seeds of the noise of two S; torch takes them modulo 2^32


class Sampler:
    """A model, seeds and labels, the samples of a cell and its row. Sample i has seed + i; labels are 0, 0, 1, 1, 2, ...

    truth: the cell that is the reference of deterministic solvers; most: the NFE of the reference of a stochastic one.
    """

    def __init__(self, name: str, n: int, seed: int, truth: Mapping[str, Any], most: int) -> None:
        loaded = pretrained.load(name)
        writers.check_shape(loaded.image)
        self.seeds, self.truth, self.most = list(range(seed, seed + n)), dict(truth), most
        self.model, self.labels = loaded.model, torch.zeros(n, dtype=torch.int64)
        if loaded.model.classes:
            self.labels = torch.arange(n) // 2 % loaded.model.classes
            self.model = loaded.model.labelled(self.labels)
        self.x = SeededNoise(self.seeds)(0, torch.empty(n, *loaded.image, device=loaded.model.device))
        self.x *= float(loaded.model.schedule.sigma(loaded.model.schedule.lam_min))
        self.about = {"model": name, "sha256": loaded.sha256, "samples": n, "seed": seed, "truth": self.truth}
        self.reference = functools.cache(self._reference)  # computed once, for all samples

    def draw(self, cell: Mapping[str, Any], rows: list[int] | None = None) -> Tensor:
        """The samples of a cell: these rows, or all."""
        rows = list(range(len(self.x))) if rows is None else rows
        solver, nfe, grid = (cell[name] for name in ("solver", "nfe", "grid"))
        prepared = prepare_whole_steps(solver, self.model, nfe, grid)
        fresh = [(self.seeds[row] + nfe * APART) % 2**32 for row in rows]
        return sample(self.model.taking(rows), x=self.x[rows], seed=fresh, solver=prepared).x

    def measure(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """distance, its median over samples, unrelated, correlation and its standard error over samples."""
        own = find(cell["solver"]).stochastic
        reference, unrelated = self.reference(*(cell["solver"], self.most, cell["grid"]) if own else self.truth.values())
        square = (self.draw(cell) - reference).square().flatten(1).mean(1)
        return {
            "reference": f"its own at {self.most} NFE" if own else "truth",
            "distance": float(square.mean().sqrt()),
            "median": float(square.sqrt().median()),
            "unrelated": math.sqrt(unrelated),
            "correlation": 1 - float(square.mean()) / unrelated,
            "correlation_se": float(square.std()) / math.sqrt(len(square)) / unrelated,
        }

    def _reference(self, solver: str, nfe: int, grid: str) -> tuple[Tensor, float]:
        """The samples, and the mean square of the difference of two of one class."""
        x = self.draw({"solver": solver, "nfe": nfe, "grid": grid})
        flat = x.flatten(1).double()
        square = torch.cdist(flat, flat).square() / flat.shape[1]
        pairs = (self.labels[:, None] == self.labels).triu(1).to(square.device)
        return x, float(square[pairs].mean())


def cells(solvers: tuple[str, ...], budgets: tuple[int, ...], grid: str, truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every solver at every S, but for a stochastic one at the last, which is its reference; and the truth at half its cost."""
    swept = [
        {"solver": solver, "nfe": nfe, "grid": grid}
        for solver in solvers
        for nfe in budgets
        if (solver in SWEPT or nfe <= MOST) and not (find(solver).stochastic and nfe == max(budgets))
    ]
    return [*swept, {**truth, "nfe": truth["nfe"] // 2}]


def picture(sampler: Sampler, budgets: tuple[int, ...], grid: str) -> Image.Image:
    """A row for each seed, each of another class: DDIM at every S, then DDPM at every S."""
    chosen = list(range(0, len(sampler.x), 2))[:SHOWN]
    columns = []
    for solver in SWEPT:
        columns += [sampler.draw({"solver": solver, "nfe": nfe, "grid": grid}, chosen).cpu() for nfe in budgets]
    columns.insert(len(budgets), torch.ones_like(columns[0]))  # a white gap
    sheet = writers.grid(to_pixels(torch.stack(columns, 1).flatten(0, 1)), columns=len(columns), width=84 * len(columns))
    ddim, ddpm = ([f"{solver.upper()} {nfe}" for nfe in budgets] for solver in SWEPT)
    return figures.headed(sheet, [*ddim, "", *ddpm])


def report(out: Path) -> str:
    """The tables of correlation and of distance, in Markdown."""
    about, rows = results.read(out)
    rows = [row for row in rows if "distance" in row]
    truth = about["truth"]
    half = next(row for row in rows if (row["nfe"], row["grid"]) == (truth["nfe"] // 2, truth["grid"]))
    rows = [row for row in rows if row is not half]
    unrelated = {row["reference"]: f"{row['unrelated']:.3f} ({row['reference']})" for row in rows}
    return (
        f"Correlation with the reference of the same x_T:\n\n{_table(rows, '{correlation:.3f} ± {correlation_se:.3f}')}\n\n"
        "Distance from it, pixels in [−1, 1]: the root mean square over all samples, and the median sample's:\n\n"
        f"{_table(rows, '{distance:.2g}, {median:.2g}')}\n\n"
        f"The distance of two references of one class is {', '.join(unrelated.values())}. The truth is {truth['solver']} at "
        f"{truth['nfe']} NFE on {truth['grid']}; with half as many it moves by {half['distance']:.1g}. {about['samples']} "
        f"samples, grid {about['grid']}, ± the standard error over samples. {provenance_sentence(about)}\n"
    )


def _table(rows: list[results.Row], text: str) -> str:
    """Solvers by S; text: the form of a cell, filled with its row."""
    budgets = sorted({row["nfe"] for row in rows})
    at = {(row["solver"], row["nfe"]): text.format(**row) for row in rows}
    lines = [[solver, *(at.get((solver, nfe), "") for nfe in budgets)] for solver in dict.fromkeys(row["solver"] for row in rows)]
    return table(["solver", *(f"S = {nfe}" for nfe in budgets)], lines)


@click.command(cls=Script)
@script_options.model()
@script_options.solvers(SOLVERS)
@click.option("--grid", default="time", show_default=True, help="Where the evaluations are; time is like the paper's τ.")
@click.option("--n", default=100, show_default=True, type=click.IntRange(2, 1000), help="Samples, two of a class at a time.")
@script_options.seed()
@script_options.out("results/consistency")
@script_options.overwrite
@script_options.fast("6 samples, S = 5, 10 and 20")
def main(name: str, solvers: tuple[str, ...], grid: str, n: int, seed: int, out: Path, overwrite: bool, fast: bool) -> None:
    """Make samples of the same x_T in few steps and in many, with noise and without."""
    budgets, n, truth = ((5, 10, 20), 6, {**TRUTH, "nfe": 60}) if fast else (BUDGETS, n, TRUTH)
    sampler = Sampler(name, n, seed, truth, max(budgets))
    for solver in solvers:
        prepare_whole_steps(solver, sampler.model, min(budgets), grid)
    wanted, command = cells(solvers, budgets, grid, truth), command_line()
    about = {**sampler.about, "grid": grid}
    rows = results.fill(out, wanted, sampler.measure, about=about, command=command, overwrite=overwrite, also=(".png",))
    results.finish(rows, out)
    sheet = picture(sampler, budgets, grid)
    with atomic(results.with_suffix(out, ".png")) as part:
        sheet.save(part, format="PNG")
    say(report(out))


if __name__ == "__main__":
    main()
