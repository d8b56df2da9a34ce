"""Optimal grids: python -m experiments.comparison.optimal_grid --model fashion --solver unipc3 --nfe 10 --out grids/unipc3-10.json

A grid for one model, one solver and one number of steps, on which the solver ends nearest to the solution. With e(i, j) the local
error of the step i → j and g_j how it grows on the way to the end, both measured (trajectories.py), the grid of N steps among
M' + 1 candidates, equally spaced in λ, that minimises

    Σ_n (g_j e(i, j))²,    i and j the ends of the n-th step

is found by dynamic programming: D_n(j) = min_i D_{n−1}(i) + (g_j e(i, j))². The sum does not know how errors of different steps
add up or cancel, and takes the steps of a multistep method to be locally equal. So the steps h_n are then refined by Gauss–Newton
on what is wanted, the error at the end, relative for each sample to what it was before, in the θ of

    log h_n = log h_n⁰ + Σ_q θ_q cos(π q (n − ½)/N) + const,    q = 1 ... min(N − 1, 12)

Beside the grid stands what was measured: its errors, those that dynamic programming alone leaves, and those of the grids with a
name. If one of these is better than dynamic programming's, it is refined too, and `start` says which of the two led to the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.optimize import least_squares
from tqdm import tqdm

from diffode import grid as grids
from diffode.errors import InputError
from diffode.files import folder_for, json_value, write_json
from diffode.schedule import Array
from experiments.common import results
from experiments.common.commands import Script, command_line
from experiments.comparison.cells import OPTIMAL, parse, stem
from experiments.comparison.ground_truth import measures
from experiments.comparison.local_errors import FIRST_SEED, LOOK_BACK, SAMPLES, Planner, Trajectories, follow, sizes, typical
from experiments.comparison.problem import Problem, Settings
from experiments.sampling.recipe import choose_device
from solvers.entries import Solver
from solvers.plan import Plan
from solvers.registry import find as find_solver

PROGRAMMED = "dynamic programming"
LONGEST = 2.5  # the longest step considered, in mean ones
MODES = 12  # of θ
APART, PULL = 0.02, 0.2  # of two θ for a derivative; the square root of what |θ|² costs, the squared error of the start being 1
ROUNDS = 8  # of Gauss–Newton, at most


@dataclass(frozen=True)
class OptimalGrid:
    """lam: the finite λ. predicted: the root of the least sum. measured: errors on the samples that the grid was found with, of
    OPTIMAL, PROGRAMMED and each name in GRIDS: rmse, median and worst as in solution.py, and `typical`, the geometric mean."""

    lam: list[float]
    solver: str
    nfe: int
    start: str
    predicted: float
    measured: dict[str, dict[str, float]]
    found_for: dict[str, Any]

    def save(self, path: Path, command: str) -> None:
        """Write it as JSON, whose `lam` is what `sample --grid FILE` takes."""
        measured = {grid: {name: json_value(error) for name, error in errors.items()} for grid, errors in self.measured.items()}
        write_json(path, {**asdict(self), "measured": measured, "made": results.provenance(command)})


def find(on: Trajectories, solver: str, nfe: int) -> OptimalGrid:
    """The grid on which a contender (contenders.py) comes nearest to the ends of the trajectories with exactly nfe evaluations.

    InputError for a solver that has no plan, cannot spend them exactly, or takes more steps than λ are known.
    """
    entry, problem = find_solver(parse(solver)[0]), on.problem
    if not isinstance(entry, Solver):
        raise InputError(f"{solver} has no plan whose grid could be optimal: take a planned solver")
    named = {grid: problem.plan(solver, grid, nfe)[1:] for grid in grids.GRIDS}
    options = named["logsnr"][1]

    def planner(lams: Array) -> Plan:
        return entry.plan(lams, problem.schedule, **options)

    tail = [np.inf] * problem.settings.denoise
    tried = {grid: lams[lams < np.inf] for grid, (lams, _) in named.items()}
    steps = len(tried["logsnr"]) - 1
    tried[PROGRAMMED], predicted = programmed(on, planner, steps) if steps else (tried["logsnr"], 0.0)

    def off(lams: Array) -> Array:
        try:
            return on.off(planner(np.append(lams, tail)))
        except InputError:  # steps so unequal that they cannot be planned
            return np.full((len(on.end), on.end[0].numel()), np.nan)

    measured = {grid: errors(off(lams)) for grid, lams in tried.items()}
    best = min(tried, key=lambda grid: measured[grid]["typical"])
    found = []
    for start in dict.fromkeys([PROGRAMMED, best]):
        refined = refine(off, tried[start])
        found += [(errors(off(refined)), start, refined), (measured[start], start, tried[start])]
    error, start, lams = min(found, key=lambda one: one[0]["typical"])
    about = {**asdict(problem.settings), "sha256": problem.loaded.sha256, "labels": problem.labels, "known_at": len(on.lams) - 1}
    return OptimalGrid(lams.tolist(), solver, nfe, start, predicted, {OPTIMAL: error, **measured}, about)


def errors(off: Array) -> dict[str, float]:
    """The errors of OptimalGrid, of samples (n, pixels) that are off; infinite if one is not finite."""
    size = sizes(off) if np.isfinite(off).all() else np.full(len(off), np.inf)
    return {**measures(size), "typical": float(typical(size))}


def programmed(on: Trajectories, planner: Planner, steps: int) -> tuple[Array, float]:
    """The grid of so many steps that dynamic programming finds, and the root of its sum."""
    last, count = len(on.lams) - 1, min(max(32, 4 * steps), len(on.lams) - 1)
    if steps > last:
        raise InputError(f"{steps} steps need trajectories known at more than {last} λ (known_at): ask for fewer evaluations")
    at, longest = np.linspace(0, last, count + 1).round().astype(int), math.ceil(LONGEST * count / max(steps, 1)) + 1
    taken = [
        (before, i, j)
        for before in range(min(steps, LOOK_BACK + 1))
        for i in range(before, count if before == LOOK_BACK else min(before * longest, count - 1) + 1)
        for j in range(i + 1, min(i + longest, count) + 1)
    ]
    before, i, j = np.array(taken).T
    cost = np.full((LOOK_BACK + 1, count + 1, count + 1), np.inf)
    e = on.local_errors(planner, list(zip(at[i].tolist(), at[j].tolist(), before.tolist(), strict=True)))
    cost[before, i, j] = np.where(np.isfinite(e), on.growth[at[j]] * e, np.inf) ** 2
    path, least = cheapest(cost, steps)
    return on.lams[at[path]], math.sqrt(least)


def cheapest(cost: Array, steps: int) -> tuple[list[int], float]:
    """The path from the first point to the last in exactly so many steps whose sum of cost[n, i, j] is least, and that sum.

    cost: of the n-th step, from i to j, (stages, points, points), the last for all further steps; infinite where there is none.
    """
    least, came = np.where(np.arange(cost.shape[1]) == 0, 0.0, np.inf), []
    for n in range(steps):
        sums = least[:, None] + cost[min(n, len(cost) - 1)]
        came.append(sums.argmin(0))
        least = sums.min(0)
    if not np.isfinite(least[-1]):
        raise InputError(f"no {steps} steps lead from the start to the end with finite errors: ask for more evaluations")
    path = [cost.shape[1] - 1]
    for back in reversed(came):
        path.append(int(back[path[-1]]))
    return path[::-1], float(least[-1])


def refine(off: Callable[[Array], Array], lams: Array) -> Array:
    """The grid with its steps refined, see the module docstring. off: of a grid, where samples arrive less where they should."""
    steps = len(lams) - 1
    modes = min(steps - 1, MODES)
    waves = np.cos(np.pi * np.outer(np.arange(steps) + 0.5, np.arange(1, modes + 1)) / steps)
    first = off(lams)
    if modes < 1 or not np.isfinite(first).all():
        return lams
    weight = 1 / np.maximum(sizes(first), 1e-300)[:, None] / math.sqrt(first.size)

    def grid(theta: Array) -> Array:
        ends = np.append(0, np.cumsum(np.diff(lams) * np.exp(waves @ theta)))
        return np.append((lams[0] + (lams[-1] - lams[0]) * ends / ends[-1])[:-1], lams[-1])

    def residual(theta: Array) -> Array:
        bar.update()
        return np.append(weight * off(grid(theta)), PULL * theta)

    def jacobian(theta: Array) -> Array:
        here = residual(theta)
        return np.stack([(residual(theta + APART * one) - here) / APART for one in np.eye(modes)], 1)

    with tqdm(desc="refinement", unit="run", disable=None, leave=False) as bar:
        return grid(least_squares(residual, np.zeros(modes), jacobian, max_nfev=ROUNDS, ftol=1e-2).x)


@click.command(cls=Script, resumable=False)
@click.option("--model", default="fashion", show_default=True, help="As `sample --model`.")
@click.option("--solver", default="unipc3", show_default=True, help="NAME, or NAME(option=value, ...).")
@click.option("--nfe", default=10, show_default=True, type=click.IntRange(1), help="Exactly so many evaluations an image.")
@click.option("--label", help="Labels, numbers or names, comma-separated, in turn; or none. [default: all in turn]")
@click.option("--guidance", type=float, default=1.0, show_default=True)
@click.option("--clip", is_flag=True, help="Clip x̂0 to [−1, 1] at every evaluation.")
@click.option("--threshold", type=float, metavar="QUANTILE", help="Dynamic thresholding of x̂0, as 0.995.")
@click.option("--denoise/--no-denoise", default=False, help="For `sample --denoise`, whose last step leads to σ = 0.")
@click.option("--n", default=SAMPLES, show_default=True, type=click.IntRange(1, 1000), help="Samples that it is found with.")
@click.option("--seed", default=FIRST_SEED, show_default=True, type=int, help="Of the first of them.")
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1), help="Images evaluated at a time.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float64"]))
@click.option("--out", type=click.Path(path_type=Path), help="[default: grids/MODEL-SOLVER-NFE.json]")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
def main(solver: str, nfe: int, n: int, seed: int, out: Path | None, overwrite: bool, device: str, **settings: Any) -> None:
    """Find the optimal grid of a solver for a model, to be sampled on with `cli.py sample --grid FILE`."""
    cell = {"solver": solver, "grid": Path(settings["model"]).stem, "nfe": nfe}
    out = out or Path("grids") / f"{stem(cell)}.json"
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: give --out another name, or --overwrite")
    given = Settings(**settings, device=choose_device(device))
    Problem(given).plan(solver, "logsnr", nfe)  # refuses what cannot be, before the work
    with folder_for(out):
        found = find(follow(given, n=n, seed=seed), solver, nfe)
        found.save(out, command_line())
    by_name = ", ".join(f"{name} {each['typical']:.3g}" for name, each in found.measured.items())
    click.echo(f"{solver} at {nfe} NFE: typical errors {by_name}; refined from {found.start}; {out}")


if __name__ == "__main__":
    main()
