"""Consistency: python -m experiments.ddim_paper.consistency

The samples that a deterministic solver makes of one x_T in S steps are the same but for details, whatever S, as x_T alone decides
them (Song et al., 2021a, section 5.2, Fig. 5); those of DDPM (η = 1) have nothing in common but their class. How far a sample x
is from a reference r of the same x_T is compared with how far references of one class are from each other:

    distance     d = sqrt(mean over samples and pixels of (x − r)²)
    unrelated    u = the same of r_i − r_j, over all pairs i ≠ j of one class
    correlation  1 − d²/u²

1 is the same image, 0 an unrelated one: where x and r are of one law, E(x − r)² = 2 Var (1 − correlation), E(r_i − r_j)² = 2 Var.
Samples of few steps are not quite of that law, and can be nearer to the mean of their class, or farther, than if independent.

The reference of a deterministic solver is the ODE's own end, to which one of high order leads; that of DDPM is its own sample of
the most steps. Its noise after x_T is fresh for every S.
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
from experiments.common import figures, results
from experiments.common.commands import Script, command_line
from experiments.common.markdown import provenance_sentence, table
from experiments.ddim_paper.table2 import whole_steps
from solvers import sample
from solvers.registry import find

BUDGETS = (10, 20, 50, 100, 1000)
SOLVERS = ("ddim", "dpm2", "heun", "dpm3", "dpmpp2m", "dpmpp3m", "ipndm", "unipc3", "ddpm")
SWEPT = ("ddim", "ddpm")  # these at all S, and in the picture
MOST = 100  # evaluations of the others
TRUTH: dict[str, Any] = {"solver": "dpm3", "nfe": 600, "grid": "logsnr"}
SHOWN = 6  # rows of the picture
APART = 2**20  # between the seeds of the noise of two S; torch takes them modulo 2^32


class Bench:
    """The model, seeds and labels, and what a cell makes of them: row i is seed + i, two of a class at a time."""

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
        self.reference = functools.cache(self._reference)  # made once, of all samples

    def made(self, cell: Mapping[str, Any], rows: list[int] | None = None) -> Tensor:
        """The samples of these rows, or of all."""
        rows = list(range(len(self.x))) if rows is None else rows
        solver, nfe, grid = (cell[name] for name in ("solver", "nfe", "grid"))
        steps = whole_steps(solver, self.model.schedule, nfe, grid)
        fresh = [(self.seeds[row] + nfe * APART) % 2**32 for row in rows]
        return sample(self.model.taking(rows), x=self.x[rows], seed=fresh, solver=solver, steps=steps, grid=grid).x

    def measure(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """distance, its median over samples, unrelated, correlation and its standard error over samples."""
        own = find(cell["solver"]).stochastic
        reference, unrelated = self.reference(*(cell["solver"], self.most, cell["grid"]) if own else self.truth.values())
        square = (self.made(cell) - reference).square().flatten(1).mean(1)
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
        x = self.made({"solver": solver, "nfe": nfe, "grid": grid})
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


def picture(bench: Bench, budgets: tuple[int, ...], grid: str) -> Image.Image:
    """A row a seed, of another class each: DDIM at every S, then DDPM at every S."""
    chosen = list(range(0, len(bench.x), 2))[:SHOWN]
    columns = []
    for solver in SWEPT:
        columns += [bench.made({"solver": solver, "nfe": nfe, "grid": grid}, chosen).cpu() for nfe in budgets]
    columns.insert(len(budgets), torch.ones_like(columns[0]))  # a white gap
    sheet = writers.grid(to_pixels(torch.stack(columns, 1).flatten(0, 1)), columns=len(columns), width=84 * len(columns))
    ddim, ddpm = ([f"{solver.upper()} {nfe}" for nfe in budgets] for solver in SWEPT)
    return figures.headed(sheet, [*ddim, "", *ddpm])


def report(out: Path) -> str:
    """The tables of correlation and of distance, and what they say, in Markdown."""
    about, found = results.read(out)
    found = [row for row in found if "distance" in row]
    truth = about["truth"]
    check = next(row for row in found if (row["nfe"], row["grid"]) == (truth["nfe"] // 2, truth["grid"]))
    found = [row for row in found if row is not check]
    budgets = sorted({row["nfe"] for row in found})
    at = {(row["solver"], row["nfe"]): row for row in found}
    head = ["solver", *(f"S = {nfe}" for nfe in budgets)]
    solvers = dict.fromkeys(row["solver"] for row in found)

    def lines(text: str) -> list[list[str]]:
        return [
            [solver, *(text.format(**at[solver, nfe]) if (solver, nfe) in at else "" for nfe in budgets)] for solver in solvers
        ]

    apart = ", ".join(f"{value:.3f} ({name})" for name, value in {row["reference"]: row["unrelated"] for row in found}.items())
    return (
        f"Correlation with the reference of the same x_T:\n\n{table(head, lines('{correlation:.3f} ± {correlation_se:.3f}'))}\n\n"
        "Distance from it, pixels in [−1, 1]: of all samples together, and the median sample's:\n\n"
        f"{table(head, lines('{distance:.2g}, {median:.2g}'))}\n\n"
        f"Two references of one class are {apart} apart. The truth is {truth['solver']} at {truth['nfe']} NFE on "
        f"{truth['grid']}; at half of them it moves by {check['distance']:.1g}. {about['samples']} samples, grid "
        f"{about['grid']}, ± the standard error over samples. {provenance_sentence(about)}\n"
    )


@click.command(cls=Script)
@click.option("--model", "name", default="fashion", show_default=True, help="As `cli.py sample` takes it.")
@click.option("--solver", "solvers", multiple=True, default=SOLVERS, help=f"May be given again. [default: {', '.join(SOLVERS)}]")
@click.option("--grid", default="time", show_default=True, help="Where the evaluations are spent; time is like the paper's τ.")
@click.option("--n", default=100, show_default=True, type=click.IntRange(2, 1000), help="Samples, two of a class at a time.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="The first.")
@click.option("--out", default="results/consistency", show_default=True, type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Begin again where there are results.")
@click.option("--fast", is_flag=True, help="Only to see that it runs: 6 samples, S = 5, 10 and 20.")
def main(name: str, solvers: tuple[str, ...], grid: str, n: int, seed: int, out: Path, overwrite: bool, fast: bool) -> None:
    """Make samples of the same x_T in few steps and in many, with noise and without."""
    budgets, n, truth = ((5, 10, 20), 6, {**TRUTH, "nfe": 60}) if fast else (BUDGETS, n, TRUTH)
    bench = Bench(name, n, seed, truth, max(budgets))
    for solver in solvers:
        whole_steps(solver, bench.model.schedule, min(budgets), grid)
    wanted, command = cells(solvers, budgets, grid, truth), command_line()
    made = results.fill(out, wanted, bench.measure, about={**bench.about, "grid": grid}, command=command, overwrite=overwrite)
    results.finish(made, out)
    sheet = picture(bench, budgets, grid)
    with atomic(results.with_suffix(out, ".png")) as part:
        sheet.save(part, format="PNG")
    click.echo(report(out))


if __name__ == "__main__":
    main()
