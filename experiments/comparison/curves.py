"""Error against evaluations and against seconds, for papers: log-log, a panel a grid, the Pareto front of all grids marked.

Adaptive solvers choose their own steps, and are drawn into every panel, dotted. What is not positive has no place on a log axis,
and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffode.files import atomic
from experiments.common.figures import require_matplotlib
from experiments.common.results import Row
from experiments.comparison.cells import OWN
from experiments.comparison.ranking import MEASURES, budgets, measured, pareto

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind; the yellow, which white paper swallows, is brown.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c564b", "#333333", "#7a4fc0", "#8a8f98")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")  # no common divisor with the colours: 70 pairs
COSTS = {"spent": "evaluations of a sample (NFE)", "seconds": "seconds for all samples"}
COLUMNS, PANEL = 3, (3.1, 2.9)  # panels side by side, and inches of one
STYLE: dict[Any, Any] = {"font.size": 8, "axes.linewidth": 0.6, "svg.hashsalt": "diffode", "svg.fonttype": "path"}


def curves(rows: Sequence[Row], folder: Path, measure: str = "rmse") -> list[Path]:
    """Write folder/error-nfe and folder/error-seconds, each as .png and .svg; nothing where nothing was measured.

    InputError without matplotlib.
    """
    require_matplotlib()
    import matplotlib

    written = []
    with matplotlib.rc_context(STYLE):
        for cost, name in (("spent", "error-nfe"), ("seconds", "error-seconds")):
            if not drawable(rows, cost, measure):
                continue
            figure = draw(rows, cost, measure)
            for suffix, options in ((".png", {"dpi": 200}), (".svg", {"metadata": {"Date": None}})):
                with atomic(folder / f"{name}{suffix}") as part:
                    figure.savefig(part, format=suffix[1:], bbox_inches="tight", **options)
                written.append(folder / f"{name}{suffix}")
    return written


def drawable(rows: Sequence[Row], cost: str, measure: str) -> list[Row]:
    """The rows with a place on log axes."""
    return [row for row in measured(rows, cost, measure) if row[cost] and row[measure]]


def styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each solver, in the order of the rows."""
    names = dict.fromkeys(row["solver"] for row in rows)
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def draw(rows: Sequence[Row], cost: str, measure: str = "rmse") -> Figure:
    """The figure: a panel a grid, on common axes, and one legend."""
    from matplotlib.figure import Figure

    look, found = styles(rows), drawable(rows, cost, measure)
    grids = list(dict.fromkeys(row["grid"] for row in found if row["grid"] != OWN)) or [OWN]
    across = min(COLUMNS, len(grids))
    down = math.ceil(len(grids) / across)
    names = [*dict.fromkeys(row["solver"] for row in found), "Pareto front"]
    columns = math.ceil(len(names) / math.floor(5.2 * down * PANEL[1]))  # of the legend, in lines of text
    legend = columns * (0.6 + 0.06 * max(map(len, names)))
    figure = Figure(figsize=(PANEL[0] * across + legend, PANEL[1] * down), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    front = pareto(found, cost, measure)
    for panel, grid in zip(panels, grids, strict=False):
        _panel(panel, [row for row in found if row["grid"] in (grid, OWN)], front, look, cost, measure)
        if grid != OWN:
            panel.set_title(grid, size=8.5, weight="bold", loc="left")
    for panel in panels[len(grids) :]:
        panel.remove()
    for i, panel in enumerate(panels[: len(grids)]):
        _axes(panel, found, cost, measure)
        panel.tick_params(labelbottom=i + across >= len(grids))
    figure.supxlabel(COSTS[cost], size=8.5)
    figure.supylabel(MEASURES[measure].label, size=8.5)
    handles = {line.get_label(): line for panel in panels[: len(grids)] for line in panel.lines}
    shown = [handles[name] for name in [*look, "Pareto front"] if name in handles]
    figure.legend(
        handles=shown,
        loc="outside right upper",
        ncols=columns,
        frameon=False,
        fontsize=7.5,
        handlelength=2.6,
    )
    return figure


def _panel(axes: Axes, rows: Sequence[Row], front: Sequence[Row], look: dict[str, Any], cost: str, measure: str) -> None:
    """A line a solver, and the front: a step below which nobody came, a ring around those on it."""
    x, y = ([abs(row[name]) for row in front] for name in (cost, measure))
    axes.set(xscale="log", yscale="log")
    axes.plot(x, y, drawstyle="steps-post", color="#bbbbbb", linewidth=4, alpha=0.6, solid_capstyle="butt", label="Pareto front")
    for solver, (colour, marker) in look.items():
        line = sorted((row for row in rows if row["solver"] == solver), key=lambda row: row["spent"])
        if not line:
            continue
        adaptive = line[0]["nfe"] is None
        axes.plot(
            [abs(row[cost]) for row in line],
            [abs(row[measure]) for row in line],
            color=colour,
            marker=marker,
            linestyle=":" if adaptive else "-",
            markerfacecolor="white" if adaptive else colour,
            markersize=4,
            markeredgewidth=0.8,
            linewidth=1.1,
            label=solver,
        )
    ringed = [row for row in front if row in rows]
    x, y = ([abs(row[name]) for row in ringed] for name in (cost, measure))
    axes.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor="#333333", markeredgewidth=0.8, label="_on it")


def _axes(axes: Axes, rows: Sequence[Row], cost: str, measure: str) -> None:
    """Ticks at the budgets, where there is room for their names; a light grid; no box."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for axis, name in ((axes.xaxis, cost), (axes.yaxis, measure)):
        values = [abs(row[name]) for row in rows]
        few = max(values) / min(values) < 100
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
        axis.set_major_formatter(lambda value, _: _power(value))
        axis.set_minor_formatter("")
    if cost == "spent" and any(row["nfe"] is not None for row in rows):
        ticks = budgets(rows, measure)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, _with_room(ticks, math.log(max(row[cost] for row in rows) / min(row[cost] for row in rows))))


def _with_room(ticks: Sequence[float], span: float) -> list[str]:
    """The names of ticks on a log axis of this span, and nothing for one too near the last that has a name."""
    names, last = [], -math.inf
    for tick in ticks:
        room = math.log(tick) - last > 0.06 * span
        names.append(f"{tick:g}" if room else "")
        last = math.log(tick) if room else last
    return names


def _power(value: float) -> str:
    """0.001 to 1000 as they are, others as a power of ten."""
    k = math.floor(math.log10(value) + 1e-9)
    step = round(value / 10.0**k)
    return f"{value:g}" if -3 <= k <= 3 else (f"{step}·" if step > 1 else "") + f"$10^{{{k}}}$"
