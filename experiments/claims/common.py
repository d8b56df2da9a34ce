"""What the claims share. A claim is a script whose docstring says what is claimed, how that is measured, what would refute it.

A cell says what is run (comparison/cells.py) and on what: settings of the problem under their own names, the model and whatever
else the claim is about. Its row has what was spent, the errors (comparison/ground_truth.py), and as known_rmse and known_median
those of the solution itself, beside the evaluations that it took. Times are left out, so that a row is the same whenever it is
computed.

Where samples are few, the error is the median's: now and then a trajectory passes close to where the flow divides, and the error
of that one sample would be the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from experiments.common import figures, results, script_options
from experiments.common.commands import command_line
from experiments.common.options import COUNT, Decorator, FileName, as_one, together
from experiments.common.results import Row
from experiments.common.terminal import say
from experiments.comparison import ground_truth
from experiments.comparison.cells import Cell, make_cells, parse_contender
from experiments.comparison.problem import Problem, Settings
from experiments.sampling.recipe import flat
from experiments.sampling.source import Source
from solvers import Solver

MODELS = ("fashion", "mixture")
CONTENDER = ("solver", "grid", "nfe", "rtol")  # of a cell: what is run; the others say on what
SETTINGS = frozenset(flat(Settings(Source(""))))
TIMES, KNOWN = ("seconds", "peak_mib"), ("rmse", "median")
BATCH = 16  # samples that are solved together; the scripts share the solutions of the first samples
TOLERANCE = 1e-7  # of the solutions for samples in float32


@dataclass(frozen=True)
class ClaimOptions:
    """What the command line of a claim says; models is empty where it names none."""

    models: tuple[str, ...]
    n: int
    seed: int
    out: Path
    overwrite: bool
    fast: bool


def claim_options(name: str, n: int) -> Decorator:
    """The options of every claim, handed to the command as `options`; n: how many samples by default."""
    return together(
        click.option(
            "--model",
            "models",
            type=FileName(str),
            multiple=True,
            help="As of `cli.py sample`. May be given again. [default: all]",
        ),
        click.option("--n", default=n, show_default=True, type=COUNT, help="Samples."),
        script_options.seed(),
        script_options.out(f"results/{name}"),
        script_options.overwrite,
        script_options.fast("few samples, few evaluations"),
        as_one("options", ClaimOptions),
    )


class Problems:
    """The problems of a script's cells, and their solutions, each computed when it is first needed and kept in the folder
    `solutions` beside OUT.

    tolerance: of the solutions. shared: the settings that all cells have in common, beside the seed.
    """

    def __init__(self, options: ClaimOptions, tolerance: float, **shared: Any) -> None:
        self.folder, self.tolerance = options.out.parent / "solutions", tolerance
        self.shared = {"seed": options.seed, "batch": BATCH, **shared}
        self._problems: dict[Settings, Problem] = {}
        self._solutions: dict[Settings, ground_truth.Solution] = {}

    def problem(self, cell: Mapping[str, Any]) -> Problem:
        """The problem of a cell; InputError if there is none."""
        settings = Settings.from_flat(**self.shared, **{name: value for name, value in cell.items() if name in SETTINGS})
        if settings not in self._problems:
            self._problems[settings] = Problem(settings)
        return self._problems[settings]

    def solution(self, cell: Mapping[str, Any]) -> ground_truth.Solution:
        """The solution of a cell's problem."""
        problem = self.problem(cell)
        if problem.settings not in self._solutions:
            self._solutions[problem.settings] = ground_truth.find_solution(problem, self.folder, self.tolerance)
        return self._solutions[problem.settings]

    def measure(self, cell: Mapping[str, Any], more: Callable[[Tensor], dict[str, float]] = lambda x: {}) -> Row:
        """The row of a cell; more: what else is measured of its samples."""
        solution = self.solution(cell)
        row = ground_truth.measure_cell(self.problem(cell), solution, {name: cell[name] for name in CONTENDER}, more)
        if "skipped" in row:
            return row
        timeless = {name: value for name, value in row.items() if name not in TIMES}
        known = {f"known_{name}": solution.about[name] for name in KNOWN}
        return {**timeless, **known, "solution_nfe": solution.nfe}


def claim_cells(
    models: Sequence[str],
    solvers: Sequence[str],
    budgets: Sequence[int],
    tolerances: Sequence[float] = (),
    *,
    grids: Sequence[str] = ("logsnr",),
    **settings: Any,
) -> list[Cell]:
    """Every solver with every budget, or with every tolerance if it is adaptive, on each grid; settings: of all problems."""
    contenders = make_cells(solvers, grids, budgets, tolerances)
    return [{"model": model, **settings, **cell} for model in models for cell in contenders]


def fill(
    wanted: Sequence[Cell],
    problems: Problems,
    options: ClaimOptions,
    measure: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    **about: Any,
) -> list[Row]:
    """The rows of a script's cells; measure: that of the problems if left out; about: what else decides all rows.

    InputError for an unknown model, or one that the script cannot be run on, before anything is computed or written.
    """
    figures.require_matplotlib()
    sha256 = {problems.problem(cell).settings.model: problems.problem(cell).loaded.sha256 for cell in wanted}
    about = {**problems.shared, "tolerance": problems.tolerance, "sha256": sha256, **about}
    how: Any = {"command": command_line(), "overwrite": options.overwrite}
    return results.fill(options.out, wanted, measure or problems.measure, about=about, also=(".png",), **how)


def conclude(rows: Sequence[Row], out: Path, plot: Callable[[Path], None], report: Callable[[Path], str]) -> None:
    """Draw the rows and print the report, if there are any that did not fail; exit code 1 if some failed."""
    if any("error" not in row for row in rows):
        plot(out)
        say(report(out))
    results.finish(rows, out)


def solver_of(contender: str) -> Solver:
    """The solver that a contender is."""
    return parse_contender(contender)[0]
