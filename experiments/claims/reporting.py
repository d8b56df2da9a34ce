"""How claims report their rows: the verdict, tables of errors, what made the rows, and plots of error against NFE."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffode.files import atomic
from experiments.common import figures, markdown, results
from experiments.common.results import Row
from experiments.comparison.curves import STYLE, styles
from experiments.comparison.ground_truth import MARGIN
from experiments.comparison.ranking import MEASURES, measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def verdict(held: str, refuted: Sequence[str]) -> str:
    """What came of a claim: where it did not hold, where it did, or that nothing could refute it."""
    if refuted:
        return f"**Refuted** {'; '.join(refuted)}.{f' Elsewhere it held: {held}.' if held else ''}"
    return f"**Held**: {held}." if held else "**Open**: nothing was measured that could refute it."


def group_by(rows: Sequence[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows that agree in these columns, by their values there, in their order."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return groups


def two_digits(value: float) -> str:
    """0.00012, 0.10, 1.2, 12, 1,200."""
    return f"{value:#.2g}" if value < 9.95 else f"{float(f'{value:.2g}'):,.0f}"


def is_uncertain(row: Row, measure: str = "median") -> bool:
    """Whether the error of a row is less than ten times that of the solution, and so not certain."""
    return f"known_{measure}" in row and row[measure] < MARGIN * row[f"known_{measure}"]


def error_table(rows: Sequence[Row], measure: str = "median") -> str:
    """Errors of solvers by NFE: the least at each NFE in bold; ≈ where it is uncertain; – where the solver cannot spend so
    much."""
    budgets = list(dict.fromkeys(row["nfe"] for row in rows))
    at = {(row["solver"], row["nfe"]): row for row in measured(rows, measure)}
    least = {nfe: min((abs(row[measure]) for (_, n), row in at.items() if n == nfe), default=math.nan) for nfe in budgets}

    def text(row: Row | None) -> str:
        if row is None:
            return "–"
        error = f"{'≈ ' * is_uncertain(row, measure)}{two_digits(row[measure])}"
        return f"**{error}**" if abs(row[measure]) == least[row["nfe"]] else error

    solvers = dict.fromkeys(row["solver"] for row in rows)
    lines = [[solver, *(text(at.get((solver, nfe))) for nfe in budgets)] for solver in solvers]
    return markdown.table(["solver", *(f"{nfe} NFE" for nfe in budgets)], lines)


def samples_and_runs(about: Mapping[str, Any]) -> str:
    """The seeds and the models of the rows, and the run that made them."""
    models = ", ".join(f"`{name}` (SHA-256 {sha256[:12]})" for name, sha256 in about["sha256"].items())
    runs = "; ".join(markdown.run_sentence(each) for each in about["made"])
    return f"Seeds {about['seed']} to {about['seed'] + about['n'] - 1}; {models}. Made by {runs}."


def panel_per_model(columns: int, measure: str = "median") -> Callable[[Path], None]:
    """The plot of a claim: error against NFE, a panel for each model, in so many columns."""

    def plot(out: Path) -> None:
        error_plot(results.read(out)[1], results.with_suffix(out, ".png"), lambda row: row["model"], columns, measure)

    return plot


def error_plot(rows: Sequence[Row], path: Path, title: Callable[[Row], str], columns: int, measure: str = "median") -> None:
    """Error against NFE on logarithmic axes: a panel for each title, in so many columns, and a line for each solver, dotted for
    adaptive ones."""
    figures.require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in measured(rows, "spent", measure) if row[measure]]
    look, panels = styles(rows), list(dict.fromkeys(title(row) for row in rows))
    down = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.3 * columns, 2.7 * down), layout="constrained")
        axes = figure.subplots(down, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for axis, panel in zip(axes, panels, strict=False):
            _error_panel(axis, [row for row in rows if title(row) == panel], look, measure)
            axis.set_title(panel, size=8.5, weight="bold", loc="left")
        for axis in axes[len(panels) :]:
            axis.remove()
        figure.supxlabel("evaluations of a sample (NFE)", size=8.5)
        figure.supylabel(MEASURES[measure].label, size=8.5)
        handles = {line.get_label(): line for axis in axes[: len(panels)] for line in axis.lines}
        figure.legend(handles=list(handles.values()), loc="outside right upper", frameon=False, fontsize=7.5)
        with atomic(path) as part:
            figure.savefig(part, format="png", dpi=130)


def _error_panel(axis: Axes, rows: Sequence[Row], look: Mapping[str, tuple[str, str]], measure: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for (solver,), line in group_by(rows, "solver").items():
        colour, marker = look[solver]
        x, y = zip(*sorted((row["spent"], row[measure]) for row in line), strict=True)
        adaptive: dict[str, Any] = {"ls": ":", "mfc": "white"} if line[0]["nfe"] is None else {}
        axis.plot(x, y, color=colour, marker=marker, ms=3.5, lw=1.1, label=solver, **adaptive)
    axis.set(xscale="log", yscale="log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda nfe, _: f"{nfe:g}")
    axis.grid(color="#e4e4e4", lw=0.6)
