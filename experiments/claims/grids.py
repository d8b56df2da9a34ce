"""Claim: the grid matters as much as the solver, and one found for the model errs less than those with a name:
python -m experiments.claims.grids

Five grids for each solver: equal steps in λ (logsnr), in t (time), in √t (quadratic), Karras's, and the one that is optimal
(optimal.py), which was found for this model, this solver and this NFE on other samples than those compared. The error is the root
mean square over samples and pixels of the difference from the solution of the model's ODE, and the median over samples.

Refuted on a model where the worst solver on its best grid errs less than the best solver on its worst; and where an optimal grid
has the larger median error than the best of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from diffode.grid import GRIDS
from experiments.claims import common
from experiments.common import markdown, results
from experiments.common.commands import Script, command_line
from experiments.common.results import Row
from experiments.comparison import cells
from experiments.comparison.cells import OPTIMAL
from experiments.comparison.grid_cache import Kept
from experiments.comparison.ranking import measured

SOLVERS = ("ddim", "dpmpp2m", "unipc3")
BUDGETS = (6, 10, 20)
SPENT = 10  # evaluations that the verdict is about


def ratio(found: Sequence[Row], of: str) -> tuple[float, Row, Row]:
    """Of rows at one budget: the largest ratio of two median errors that differ in `of` alone, "grid" or "solver", among grids
    with a name; and the two rows, the worse first."""
    other = "solver" if of == "grid" else "grid"
    pairs = []
    for line in common.by([row for row in found if row["grid"] != OPTIMAL], other).values():
        worst, best = (choose(line, key=lambda row: row["median"]) for choose in (max, min))
        pairs.append((worst["median"] / best["median"], worst, best))
    return max(pairs, key=lambda pair: pair[0])


def gains(found: Sequence[Row], measure: str = "median") -> list[tuple[float, Row, Row]]:
    """Of each solver and budget: how many times less the error on the optimal grid is than on the best grid with a name; both."""
    made = []
    for line in common.by(measured(found, measure), "solver", "nfe").values():
        optimal = next((row for row in line if row["grid"] == OPTIMAL), None)
        named = min((row for row in line if row["grid"] != OPTIMAL), key=lambda row: row[measure], default=None)
        if optimal and named:
            made.append((named[measure] / optimal[measure], optimal, named))
    return made


def report(out: Path) -> str:
    """The table of each model, and whether the claim held."""
    about, found = results.read(out)
    held: list[str] = []
    refuted: list[str] = []
    parts: list[str] = []
    for (model,), here in common.by(measured(found, "median"), "model").items():
        parts.append(f"#### {model}\n\n{_table(here)}")
        spent = [row for row in here if row["nfe"] == SPENT]
        (by_grid, bad, good), (by_solver, weak, strong) = ratio(spent, "grid"), ratio(spent, "solver")
        said = (
            f"on {model} at {SPENT} evaluations the grid makes a difference of up to {common.number(by_grid)} times "
            f"({good['solver']}, {good['grid']} against {bad['grid']}), the solver of up to {common.number(by_solver)} times "
            f"({strong['solver']} against {weak['solver']}, on {strong['grid']})"
        )
        (held if by_grid >= by_solver else refuted).append(said)
        less = gains(here)
        worse = [f"{optimal['solver']} at {optimal['nfe']}" for gain, optimal, _ in less if gain < 1]
        of_each = (
            f"between {common.number(min(less)[0])} and {common.number(max(less)[0])} times less than the best grid with a name"
        )
        if worse:
            refuted.append(f"on {model} the optimal grid of {', '.join(worse)} errs more than a grid with a name")
        elif less:
            held.append(f"and on the optimal grids the median error is {of_each}")
    return "\n\n".join([common.verdict("; ".join(held), refuted), *parts, common.made_of(about)]) + "\n"


def _table(found: Sequence[Row]) -> str:
    """Median and rmse by grid, a line a solver and budget, the least median in bold."""
    names = list(dict.fromkeys(row["grid"] for row in found))
    lines = []
    for (solver, nfe), line in common.by(found, "solver", "nfe").items():
        at, least = {row["grid"]: row for row in line}, min(row["median"] for row in line)

        def text(row: Row | None, least: float = least) -> str:
            if row is None:
                return "–"
            said = common.number(row["median"])
            return f"{f'**{said}**' if row['median'] == least else said} / {common.number(row['rmse'])}"

        lines.append([solver, str(nfe), *(text(at.get(name)) for name in names)])
    return "Median error / rmse:\n\n" + markdown.table(["solver", "NFE", *names], lines)


def plot(out: Path) -> None:
    """Error against NFE, a panel a model and solver, a line a grid."""
    _, found = results.read(out)
    lines = [{**row, "solver": row["grid"], "of": f"{row['solver']}, {row['model']}"} for row in found]
    common.picture(lines, results.with_suffix(out, ".png"), lambda row: row["of"], 3)


@click.command(cls=Script)
@common.options("grids", n=64)
def main(**o: Any) -> None:
    """The error of solvers on each grid, and on the one that is optimal for each."""
    n, tolerance = (2, 1e-4) if o["fast"] else (o["n"], common.TOLERANCE)
    solvers, budgets = (("ddim", "dpmpp2m"), (10,)) if o["fast"] else (SOLVERS, BUDGETS)
    models = o["models"] or (("mixture",) if o["fast"] else common.MODELS)
    bench = common.Bench(o, tolerance, n=n)
    kept: dict[str, Kept] = {}

    def measure(cell: Mapping[str, Any]) -> Row:
        model = cell["model"]
        if model not in kept:
            folder = o["out"].parent / "optimal" / cells.as_file(model)
            kept[model] = Kept(bench.problem(cell), folder, command_line())
        return bench.measure(kept[model].told(cell))

    wanted = common.cells(models, solvers, budgets, grids=(*GRIDS, OPTIMAL))
    common.tell(common.fill("grids", wanted, bench, o, measure=measure), o["out"], plot, report)


if __name__ == "__main__":
    main()
