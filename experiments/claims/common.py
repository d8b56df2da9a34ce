"""What the claims share. A claim is a script whose docstring says what is claimed, how that is measured, what would refute it.

A cell is what is run (contenders.py) and what it is run on: settings of the problem under their own names, the model and whatever
else the claim is about. Its row has what was spent, the errors (solution.py), and as known_rmse and known_median those of the
solution itself, beside the evaluations that it took. Times are left out: a row is the same whenever it is computed.

Where samples are few, the error is the median's: now and then a trajectory passes so close to where the flow divides that the
error of this one would be the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from diffode.files import atomic
from experiments.common import figures, markdown, results
from experiments.common.commands import command_line
from experiments.common.results import Row
from experiments.comparison import cells as contenders
from experiments.comparison import ground_truth
from experiments.comparison.cells import Cell
from experiments.comparison.curves import STYLE, styles
from experiments.comparison.problem import Problem, Settings
from experiments.comparison.ranking import MARGIN, MEASURES, measured
from solvers.entries import Entry
from solvers.registry import find

MODELS = ("fashion", "mixture")
WHAT = ("solver", "grid", "nfe", "rtol")  # of a cell: what is run, and not on what
TIMES, KNOWN = ("seconds", "peak_mib"), ("rmse", "median")
BATCH = 16  # in which solutions are found; so scripts share those of the first samples
TOLERANCE = 1e-7  # of the solutions for samples in float32
SETTINGS = [field.name for field in fields(Settings)]
Also = Callable[[Tensor], dict[str, float]]


class Bench:
    """The problems of a script's cells, and their solutions, found when they are first needed and kept in `solutions` beside OUT.

    o: the options of the script. tolerance: of the solutions. common: the settings that all cells share, beside the seed.
    """

    def __init__(self, o: Mapping[str, Any], tolerance: float, **common: Any) -> None:
        self.folder, self.tolerance = o["out"].parent / "solutions", tolerance
        self.common = {"seed": o["seed"], "batch": BATCH, **common}
        self.problems: dict[Settings, Problem] = {}
        self.solutions: dict[Settings, ground_truth.Solution] = {}

    def problem(self, cell: Mapping[str, Any]) -> Problem:
        """That of a cell; InputError if there is none."""
        settings = Settings(**self.common, **{name: value for name, value in cell.items() if name in SETTINGS})
        if settings not in self.problems:
            self.problems[settings] = Problem(settings)
        return self.problems[settings]

    def solution(self, cell: Mapping[str, Any]) -> ground_truth.Solution:
        """Of a cell's problem."""
        problem = self.problem(cell)
        if problem.settings not in self.solutions:
            self.solutions[problem.settings] = ground_truth.solve(problem, self.folder, self.tolerance)
        return self.solutions[problem.settings]

    def measure(self, cell: Mapping[str, Any], also: Also = lambda x: {}) -> Row:
        """The row of a cell."""
        solution = self.solution(cell)
        row = ground_truth.measure(self.problem(cell), solution, {name: cell[name] for name in WHAT}, also)
        if "skipped" in row:
            return row
        timeless = {name: value for name, value in row.items() if name not in TIMES}
        known = {f"known_{name}": solution.about[name] for name in KNOWN}
        return {**timeless, **known, "solution_nfe": solution.nfe}


def options(name: str, n: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of every claim; n: how many samples."""
    made = (
        click.option("--model", "models", multiple=True, help="As of `cli.py sample`. May be given again. [default: all]"),
        click.option("--n", default=n, show_default=True, type=click.IntRange(1), help="Samples."),
        click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="The first; sample i has seed + i."),
        click.option(
            "--out", default=f"results/{name}", show_default=True, type=click.Path(path_type=Path), help="Without suffix."
        ),
        click.option("--overwrite", is_flag=True, help="Begin again where there are results."),
        click.option("--fast", is_flag=True, help="Only to see that it runs: few samples, few evaluations."),
    )

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(made):
            command = option(command)
        return command

    return add


def cells(
    models: Sequence[str],
    solvers: Sequence[str],
    budgets: Sequence[int],
    tolerances: Sequence[float] = (),
    *,
    grids: Sequence[str] = ("logsnr",),
    **on: Any,
) -> list[Cell]:
    """Every solver with every budget, or with every tolerance if it is adaptive, on each grid; on: settings of all."""
    made = contenders.cells(solvers, grids, budgets, tolerances)
    return [{"model": model, **on, **cell} for model in models for cell in made]


def fill(
    name: str,
    cells: Sequence[Cell],
    bench: Bench,
    o: Mapping[str, Any],
    also: Mapping[str, Any] | None = None,
    measure: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> list[Row]:
    """The rows of a script's cells, by bench.measure unless told otherwise; also: what else decides them all.

    InputError for a model that there is not, or that the script cannot be run on, before anything is computed or written.
    """
    figures.require_matplotlib()
    sha256 = {bench.problem(cell).settings.model: bench.problem(cell).loaded.sha256 for cell in cells}
    about = {**bench.common, "tolerance": bench.tolerance, "sha256": sha256, **(also or {})}
    command = command_line()
    return results.fill(o["out"], cells, measure or bench.measure, about=about, command=command, overwrite=o["overwrite"])


def tell(made: Sequence[Row], out: Path, plot: Callable[[Path], None], report: Callable[[Path], str]) -> None:
    """Draw the rows, and say what came of the claim, if there are any; exit code 1 if some failed."""
    if any("error" not in row for row in made):
        plot(out)
        click.echo(report(out))
    results.finish(made, out)


def verdict(held: str, refuted: Sequence[str]) -> str:
    """What came of a claim: where it did not hold, where it did, or that nothing could refute it."""
    if refuted:
        return f"**Refuted** {'; '.join(refuted)}.{f' Elsewhere it held: {held}.' if held else ''}"
    return f"**Held**: {held}." if held else "**Open**: nothing was measured that could refute it."


def entry(solver: str) -> Entry:
    """What the registry says of a contender."""
    return find(contenders.parse(solver)[0])


def by(found: Sequence[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows that agree in these names, by what they say there, in their order."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in found:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def number(value: float) -> str:
    """Two digits: 0.00012, 0.10, 1.2, 12, 1,200."""
    return f"{value:#.2g}" if value < 9.95 else f"{float(f'{value:.2g}'):,.0f}"


def unsure(row: Row, measure: str = "median") -> bool:
    """Whether the solution is not known ten times better than the row is right."""
    return f"known_{measure}" in row and row[measure] < MARGIN * row[f"known_{measure}"]


def errors(found: Sequence[Row], measure: str = "median") -> str:
    """A table of errors, solvers by NFE: the least at each NFE in bold; ≈ where the solution is not known ten times better; –
    where the solver cannot spend so much."""
    budgets = list(dict.fromkeys(row["nfe"] for row in found))
    at = {(row["solver"], row["nfe"]): row for row in measured(found, measure)}
    least = {nfe: min((abs(row[measure]) for (_, n), row in at.items() if n == nfe), default=math.nan) for nfe in budgets}

    def text(row: Row | None) -> str:
        if row is None:
            return "–"
        said = f"{'≈ ' * unsure(row, measure)}{number(row[measure])}"
        return f"**{said}**" if abs(row[measure]) == least[row["nfe"]] else said

    solvers = dict.fromkeys(row["solver"] for row in found)
    lines = [[solver, *(text(at.get((solver, nfe))) for nfe in budgets)] for solver in solvers]
    return markdown.table(["solver", *(f"{nfe} NFE" for nfe in budgets)], lines)


def made_of(about: Mapping[str, Any]) -> str:
    """What the rows are of, and what made them."""
    files = ", ".join(f"`{name}` (SHA-256 {sha256[:12]})" for name, sha256 in about["sha256"].items())
    return (
        f"Seeds {about['seed']} to {about['seed'] + about['n'] - 1}; {files}. Made by {markdown.run_sentence(about['made'][-1])}."
    )


def panels(columns: int, measure: str = "median") -> Callable[[Path], None]:
    """The plot of a claim: error against NFE, a panel a model, so many side by side."""

    def plot(out: Path) -> None:
        picture(results.read(out)[1], results.with_suffix(out, ".png"), lambda row: row["model"], columns, measure)

    return plot


def picture(found: Sequence[Row], path: Path, title: Callable[[Row], str], columns: int, measure: str = "median") -> None:
    """Error against NFE, log-log: a panel a title, so many side by side, and a line a solver; those of adaptive ones dotted."""
    figures.require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    found = [row for row in measured(found, "spent", measure) if row[measure]]
    look, panels = styles(found), dict.fromkeys(title(row) for row in found)
    down = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.3 * columns, 2.7 * down), layout="constrained")
        axes = figure.subplots(down, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for axis, name in zip(axes, panels, strict=False):
            for (solver,), line in by([row for row in found if title(row) == name], "solver").items():
                colour, marker = look[solver]
                dotted = line[0]["nfe"] is None
                x, y = zip(*sorted((row["spent"], row[measure]) for row in line), strict=True)
                how = {"ls": ":", "mfc": "white"} if dotted else {}
                axis.plot(x, y, color=colour, marker=marker, ms=3.5, lw=1.1, label=solver, **how)
            axis.set(xscale="log", yscale="log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(lambda nfe, _: f"{nfe:g}")
            axis.set_title(name, size=8.5, weight="bold", loc="left")
            axis.grid(color="#e4e4e4", lw=0.6)
        for axis in axes[len(panels) :]:
            axis.remove()
        figure.supxlabel("evaluations of a sample (NFE)", size=8.5)
        figure.supylabel(MEASURES[measure].label, size=8.5)
        handles = {line.get_label(): line for axis in axes[: len(panels)] for line in axis.lines}
        figure.legend(handles=list(handles.values()), loc="outside right upper", frameon=False, fontsize=7.5)
        with atomic(path) as part:
            figure.savefig(part, format="png", dpi=130)
