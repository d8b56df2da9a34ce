"""Claim: the grid matters as much as the solver, and one found for the model errs less than those with a name:
python -m experiments.claims.grids

Five grids for each solver: equal steps in λ (logsnr), in t (time), in √t (quadratic), Karras's, and the optimal one
(comparison/optimal_grid.py), which was found for this model, this solver and this NFE on other samples than those compared. The
error is the root mean square over samples and pixels of the difference from the solution of the model's ODE, and the median over
samples.

Refuted on a model where the choice of the grid changes the median error by a smaller factor than the choice of the solver; and
where an optimal grid has a larger median error than the best of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from diffode.grid import GRIDS
from experiments.claims import common, reporting
from experiments.claims.common import ClaimOptions, Problems
from experiments.claims.reporting import group_by, two_digits
from experiments.common import markdown, results
from experiments.common.commands import Script, command_line
from experiments.common.results import Row
from experiments.comparison.cells import OPTIMAL, as_filename
from experiments.comparison.grid_cache import OptimalGridCache
from experiments.comparison.ranking import measured

SOLVERS = ("ddim", "dpmpp2m", "unipc3")
BUDGETS = (6, 10, 20)
JUDGED = 10  # the NFE that the verdict is about


def ratio(rows: Sequence[Row], column: str) -> tuple[float, Row, Row]:
    """Of rows at one NFE: the largest ratio of two median errors that differ in this column alone, "grid" or "solver", among
    grids with a name; and the two rows, the worse first."""
    other = "solver" if column == "grid" else "grid"
    pairs = []
    for line in group_by([row for row in rows if row["grid"] != OPTIMAL], other).values():
        worst, best = (choose(line, key=lambda row: row["median"]) for choose in (max, min))
        pairs.append((worst["median"] / best["median"], worst, best))
    return max(pairs, key=lambda pair: pair[0])


def gains(rows: Sequence[Row], measure: str = "median") -> list[tuple[float, Row, Row]]:
    """For each solver and NFE: the error on the best grid with a name divided by that on the optimal grid; the row of the optimal
    grid, and that of the other."""
    found = []
    for line in group_by(measured(rows, measure), "solver", "nfe").values():
        optimal = next((row for row in line if row["grid"] == OPTIMAL), None)
        named = min((row for row in line if row["grid"] != OPTIMAL), key=lambda row: row[measure], default=None)
        if optimal and named:
            found.append((named[measure] / optimal[measure], optimal, named))
    return found


def report(out: Path) -> str:
    """The table of each model, and whether the claim held."""
    about, rows = results.read(out)
    held: list[str] = []
    refuted: list[str] = []
    parts: list[str] = []
    for (model,), here in group_by(measured(rows, "median"), "model").items():
        parts.append(f"#### {model}\n\n{_table(here)}")
        judged = [row for row in here if row["nfe"] == JUDGED]
        (by_grid, bad, good), (by_solver, weak, strong) = ratio(judged, "grid"), ratio(judged, "solver")
        sentence = (
            f"on {model} at {JUDGED} evaluations the grid makes a difference of up to {two_digits(by_grid)} times "
            f"({good['solver']}, {good['grid']} against {bad['grid']}), the solver of up to {two_digits(by_solver)} times "
            f"({strong['solver']} against {weak['solver']}, on {strong['grid']})"
        )
        (held if by_grid >= by_solver else refuted).append(sentence)
        optimal = gains(here)
        worse = [f"{row['solver']} at {row['nfe']}" for gain, row, _ in optimal if gain < 1]
        if worse:
            refuted.append(f"on {model} the optimal grid of {', '.join(worse)} errs more than a grid with a name")
        elif optimal:
            factors = [two_digits(choose(gain for gain, _, _ in optimal)) for choose in (min, max)]
            held.append(
                f"and on the optimal grids the median error is {factors[0]} to {factors[1]} times less than on the best grid "
                "with a name"
            )
    return "\n\n".join([reporting.verdict("; ".join(held), refuted), *parts, reporting.samples_and_runs(about)]) + "\n"


def _table(rows: Sequence[Row]) -> str:
    """Median and rmse by grid, a line for each solver and NFE, the least median in bold."""
    names = list(dict.fromkeys(row["grid"] for row in rows))
    lines = []
    for (solver, nfe), line in group_by(rows, "solver", "nfe").items():
        at, least = {row["grid"]: row for row in line}, min(row["median"] for row in line)

        def text(row: Row | None, least: float = least) -> str:
            if row is None:
                return "–"
            error = two_digits(row["median"])
            return f"{f'**{error}**' if row['median'] == least else error} / {two_digits(row['rmse'])}"

        lines.append([solver, str(nfe), *(text(at.get(name)) for name in names)])
    return "Median error / rmse:\n\n" + markdown.table(["solver", "NFE", *names], lines)


def plot(out: Path) -> None:
    """Error against NFE: a panel for each model and solver, a line for each grid."""
    _, rows = results.read(out)
    lines = [{**row, "solver": row["grid"], "panel": f"{row['solver']}, {row['model']}"} for row in rows]
    reporting.error_plot(lines, results.with_suffix(out, ".png"), lambda row: row["panel"], 3)


@click.command(cls=Script)
@common.claim_options("grids", n=64)
def main(options: ClaimOptions) -> None:
    """The error of solvers on each grid, and on the one that is optimal for each."""
    n, tolerance = (2, 1e-4) if options.fast else (options.n, common.TOLERANCE)
    solvers, budgets = (("ddim", "dpmpp2m"), (10,)) if options.fast else (SOLVERS, BUDGETS)
    models = options.models or (("mixture",) if options.fast else common.MODELS)
    problems = Problems(options, tolerance, n=n)
    optimal: dict[str, OptimalGridCache] = {}

    def measure(cell: Mapping[str, Any]) -> Row:
        model = cell["model"]
        if model not in optimal:
            folder = options.out.parent / "optimal" / as_filename(model)
            optimal[model] = OptimalGridCache(problems.problem(cell), folder, command_line())
        return problems.measure(optimal[model].with_optimal_grid(cell))

    wanted = common.claim_cells(models, solvers, budgets, grids=(*GRIDS, OPTIMAL))
    rows = common.fill(wanted, problems, options, measure)
    common.conclude(rows, options.out, plot, report)


if __name__ == "__main__":
    main()
