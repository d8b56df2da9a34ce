"""The optimal grid of one solver with one number of steps for one model.

    python -m experiments.comparison.optimal_grid --model fashion --solver unipc3 --nfe 10 --out grids/unipc3-10.json

It is the grid on which the solver ends nearest to the solution. With e(i, j) the local
error of the step i → j and g_j the factor by which it grows until the end, both measured (local_errors.py), the grid of N steps
among M' + 1 candidates, equally spaced in λ, that minimises

    Σ_n (g_j e(i, j))²,    i and j the ends of the n-th step

is found by dynamic programming: D_n(j) = min_i D_{n−1}(i) + (g_j e(i, j))². The sum ignores how errors of different steps add up
or cancel, and assumes that the last steps of a multistep method are equally long. So the steps h_n are then refined by
Gauss–Newton on the quantity that matters, the error at the end, relative for each sample to its error before, in the θ of

    log h_n = log h_n⁰ + Σ_q θ_q cos(π q (n − ½)/N) + const,    q = 1 ... min(N − 1, 12)

The file holds the grid and the measured errors: of the grid, of dynamic programming alone, and of the named grids. If a named
grid is better than dynamic programming's, it is refined too, and `start` says from which of the two the grid was refined.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.optimize import least_squares

from diffode import grid as grids
from diffode.errors import InputError
from diffode.files import folder_for, json_value, write_json
from diffode.schedule import Array
from experiments.common import results
from experiments.common.commands import Script, command_line
from experiments.common.destinations import refuse_existing
from experiments.common.options import COUNT, SEED, FileName, OutputName
from experiments.common.progress import progress
from experiments.common.terminal import say
from experiments.comparison.cells import OPTIMAL, cell_filename, parse_contender
from experiments.comparison.ground_truth import error_summary
from experiments.comparison.local_errors import (
    FIRST_SEED,
    SAMPLES,
    Trajectories,
    follow_trajectories,
    geometric_mean,
    rms,
)
from experiments.comparison.local_steps import LOOK_BACK, Planner
from experiments.comparison.problem import Problem, Settings
from experiments.sampling.recipe import choose_device
from solvers.budget import Prepared
from solvers.plan import Plan

DYNAMIC_PROGRAMMING = "dynamic programming"
LONGEST = 2.5  # the longest step considered, relative to the mean step
MODES = 12  # the most θ
DIFFERENCE = 0.02  # of θ, for a derivative
PENALTY = 0.2  # its square weighs |θ|² against the squared error, which is 1 at the start
ROUNDS = 8  # of Gauss–Newton, at most


@dataclass(frozen=True)
class OptimalGrid:
    """lam: the finite λ. start: the grid that was refined. predicted: the root of the least sum. measured: for OPTIMAL,
    DYNAMIC_PROGRAMMING and each name in GRIDS the errors on the samples that the grid was found with: rmse, median and worst as
    in ground_truth.py, and `typical`, their geometric mean. found_for: settings and model."""

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
        made = results.provenance(command)
        write_json(path, {**asdict(self), "measured": measured, "checksum": checksum(self.lam), "made": made})


def checksum(lam: Sequence[float]) -> str:
    """Of a grid in a file."""
    return hashlib.sha256(json.dumps(list(lam)).encode()).hexdigest()[:16]


def find_optimal_grid(trajectories: Trajectories, contender: str, nfe: int) -> OptimalGrid:
    """The grid on which a contender (cells.py) comes nearest to the ends of the trajectories with exactly nfe evaluations.

    InputError for a solver that has no plan, cannot make exactly so many, or takes more steps than λ are known.
    """
    solver, problem = parse_contender(contender)[0], trajectories.problem
    if not solver.has_plan:
        raise InputError(f"{contender} has no plan whose grid could be optimal: take a planned solver")
    named = {grid: problem.prepare(contender, grid, nfe) for grid in grids.GRIDS}
    options = named["logsnr"].options

    def planner(lams: Array) -> Plan:
        return solver.plan(lams, problem.schedule, **options)

    @lru_cache(maxsize=2)  # the refinement asks for its derivative where it has just asked for the error
    def end_error_on(lams: tuple[float, ...]) -> Array:
        try:
            return trajectories.end_error(planner(np.array([*lams, *[np.inf] * problem.settings.denoise])))
        except InputError:  # steps so unequal that they cannot be planned
            return np.full((len(trajectories.end), trajectories.end[0].numel()), np.nan)

    def end_error(lams: Array) -> Array:
        return end_error_on(tuple(lams.tolist()))

    starts = {grid: prepared.grid[prepared.grid < np.inf] for grid, prepared in named.items()}
    measured = {grid: summarize(trajectories.end_error(_plan(prepared))) for grid, prepared in named.items()}
    steps = len(starts["logsnr"]) - 1
    starts[DYNAMIC_PROGRAMMING], predicted = (
        dynamic_programming(trajectories, planner, steps) if steps else (starts["logsnr"], 0.0)
    )
    measured[DYNAMIC_PROGRAMMING] = summarize(end_error(starts[DYNAMIC_PROGRAMMING]))
    best = min(starts, key=lambda grid: measured[grid]["typical"])
    results = []
    for start in dict.fromkeys([DYNAMIC_PROGRAMMING, best]):
        refined = refine(end_error, starts[start])
        results += [(summarize(end_error(refined)), start, refined), (measured[start], start, starts[start])]
    errors, start, lams = min(results, key=lambda result: result[0]["typical"])
    return OptimalGrid(lams.tolist(), contender, nfe, start, predicted, {OPTIMAL: errors, **measured}, trajectories.provenance)


def _plan(prepared: Prepared) -> Plan:
    assert prepared.plan is not None
    return prepared.plan


def summarize(errors: Array) -> dict[str, float]:
    """The numbers of OptimalGrid.measured for the errors of samples, (n, pixels); infinite if one is not finite."""
    sizes = rms(errors) if np.isfinite(errors).all() else np.full(len(errors), np.inf)
    return {**error_summary(sizes), "typical": float(geometric_mean(sizes))}


def dynamic_programming(trajectories: Trajectories, planner: Planner, steps: int) -> tuple[Array, float]:
    """The grid of so many steps whose sum (see the module docstring) is least, and the root of that sum."""
    last = len(trajectories.lams) - 1
    if steps > last:
        raise InputError(f"{steps} steps need trajectories known at more than {last} λ (known_at): ask for fewer evaluations")
    count = min(max(32, 4 * steps), last)
    candidates = np.linspace(0, last, count + 1).round().astype(int)
    longest = math.ceil(LONGEST * count / max(steps, 1)) + 1
    before, i, j = np.array(
        [
            (before, i, j)
            for before in range(min(steps, LOOK_BACK + 1))
            for i in range(before, count if before == LOOK_BACK else min(before * longest, count - 1) + 1)
            for j in range(i + 1, min(i + longest, count) + 1)
        ]
    ).T
    e = trajectories.local_errors(
        planner, list(zip(candidates[i].tolist(), candidates[j].tolist(), before.tolist(), strict=True))
    )
    cost = np.full((LOOK_BACK + 1, count + 1, count + 1), np.inf)
    cost[before, i, j] = np.where(np.isfinite(e), trajectories.growth[candidates[j]] * e, np.inf) ** 2
    path, least = cheapest_path(cost, steps)
    return trajectories.lams[candidates[path]], math.sqrt(least)


def cheapest_path(cost: Array, steps: int) -> tuple[list[int], float]:
    """The path from the first point to the last in exactly so many steps whose sum of cost[n, i, j] is least, and that sum.

    cost: of the n-th step, from i to j, (stages, points, points), the last for all further steps; infinite where there is none.
    """
    least, previous = np.where(np.arange(cost.shape[1]) == 0, 0.0, np.inf), []
    for n in range(steps):
        sums = least[:, None] + cost[min(n, len(cost) - 1)]
        previous.append(sums.argmin(0))
        least = sums.min(0)
    if not np.isfinite(least[-1]):
        raise InputError(f"no {steps} steps lead from the start to the end with finite errors: ask for more evaluations")
    path = [cost.shape[1] - 1]
    for best in reversed(previous):
        path.append(int(best[path[-1]]))
    return path[::-1], float(least[-1])


def refine(end_error: Callable[[Array], Array], lams: Array) -> Array:
    """The grid with its steps refined, see the module docstring.

    end_error: a grid -> where samples arrive minus where they should, (n, pixels); not finite for a grid that cannot be used.
    """
    steps = len(lams) - 1
    modes = min(steps - 1, MODES)
    waves = np.cos(np.pi * np.outer(np.arange(steps) + 0.5, np.arange(1, modes + 1)) / steps)
    at_start = end_error(lams)
    if modes < 1 or not np.isfinite(at_start).all():
        return lams
    weight = 1 / np.maximum(rms(at_start), 1e-300)[:, None] / math.sqrt(at_start.size)

    def grid(theta: Array) -> Array:
        ends = np.append(0, np.cumsum(np.diff(lams) * np.exp(waves @ theta)))
        return np.append((lams[0] + (lams[-1] - lams[0]) * ends / ends[-1])[:-1], lams[-1])

    def residual(theta: Array) -> Array:
        bar.update()
        return np.append(weight * end_error(grid(theta)), PENALTY * theta)

    def jacobian(theta: Array) -> Array:
        here = residual(theta)
        return np.stack([(residual(theta + DIFFERENCE * mode) - here) / DIFFERENCE for mode in np.eye(modes)], 1)

    with progress(desc="refinement", unit="runs", leave=False) as bar:
        return grid(least_squares(residual, np.zeros(modes), jacobian, max_nfev=ROUNDS, ftol=1e-2).x)


@click.command(cls=Script, resumable=False)
@click.option("--model", type=FileName(str), default="fashion", show_default=True, help="As `sample --model`.")
@click.option("--solver", default="unipc3", show_default=True, help="NAME, or NAME(option=value, ...).")
@click.option("--nfe", default=10, show_default=True, type=click.IntRange(1), help="Exactly so many evaluations per image.")
@click.option("--label", help="Labels, numbers or names, comma-separated, in turn; or none. [default: all in turn]")
@click.option("--guidance", type=float, default=1.0, show_default=True)
@click.option("--clip", is_flag=True, help="Clip x̂0 to [−1, 1] at every evaluation.")
@click.option("--threshold", type=float, metavar="QUANTILE", help="Dynamic thresholding of x̂0, as 0.995.")
@click.option("--denoise/--no-denoise", default=False, help="For `sample --denoise`, whose last step leads to σ = 0.")
@click.option("--n", default=SAMPLES, show_default=True, type=click.IntRange(1, 1000), help="Samples that it is found with.")
@click.option("--seed", default=FIRST_SEED, show_default=True, type=SEED, help="Of the first of them.")
@click.option("--batch", default=32, show_default=True, type=COUNT, help="Images evaluated at a time.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float64"]))
@click.option("--out", type=OutputName(), help="[default: grids/MODEL-SOLVER-NFE.json]")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
def main(solver: str, nfe: int, n: int, seed: int, out: Path | None, overwrite: bool, device: str, **settings: Any) -> None:
    """Find the optimal grid of a solver for a model, to be sampled on with `cli.py sample --grid FILE`."""
    cell = {"solver": solver, "grid": Path(settings["model"]).stem, "nfe": nfe}
    out = out or Path("grids") / f"{cell_filename(cell)}.json"
    refuse_existing([out], overwrite=overwrite)
    chosen = Settings.from_flat(**settings, device=choose_device(device))
    Problem(chosen).prepare(solver, "logsnr", nfe)  # refuses what is impossible before the work begins
    with folder_for(out):
        found = find_optimal_grid(follow_trajectories(chosen, n=n, seed=seed), solver, nfe)
        found.save(out, command_line())
    errors = ", ".join(f"{grid} {numbers['typical']:.3g}" for grid, numbers in found.measured.items())
    say(f"{solver} at {nfe} NFE: typical errors {errors}; refined from {found.start}; {out}")


if __name__ == "__main__":
    main()
