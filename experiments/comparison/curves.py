"""Error against evaluations and against seconds, as figures for papers: log-log, one panel per grid, with the Pareto front of
all.

Adaptive solvers choose their own steps, and are drawn into every panel, dotted. Numbers that are not positive have no place on a
log axis, and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffode.files import atomic
from experiments.common.figures import require_matplotlib
from experiments.common.results import Row
from experiments.comparison.cells import OWN_STEPS
from experiments.comparison.ranking import MEASURES, budgets, measured, pareto

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can distinguish; their yellow, hardly seen on white paper, is replaced by brown.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c564b", "#333333", "#7a4fc0", "#8a8f98")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")  # 7, which is prime to 10: the first 70 pairs of colour and marker differ
FIGURES = tuple(f"error-{cost}.{suffix}" for cost in ("nfe", "seconds") for suffix in ("png", "svg"))
COSTS = {"spent": "evaluations per sample (NFE)", "seconds": "seconds for all samples"}
COLUMNS, PANEL = 3, (3.1, 2.9)  # panels side by side, and the size of one in inches
FRONT = "Pareto front"  # in the legend
STYLE: dict[Any, Any] = {"font.size": 8, "axes.linewidth": 0.6, "svg.hashsalt": "diffode", "svg.fonttype": "path"}


def save_curves(rows: Sequence[Row], folder: Path, measure: str = "rmse") -> list[Path]:
    """Write folder/error-nfe and folder/error-seconds, each as .png and .svg, and return their paths; nothing if nothing was
    measured.

    InputError without matplotlib.
    """
    require_matplotlib()
    import matplotlib

    written = []
    with matplotlib.rc_context(STYLE):
        for cost, name in (("spent", "error-nfe"), ("seconds", "error-seconds")):
            if not drawable(rows, cost, measure):
                continue
            figure = draw_figure(rows, cost, measure)
            for suffix, options in ((".png", {"dpi": 200}), (".svg", {"metadata": {"Date": None}})):
                with atomic(folder / f"{name}{suffix}") as part:
                    figure.savefig(part, format=suffix[1:], bbox_inches="tight", **options)
                written.append(folder / f"{name}{suffix}")
    return written


def drawable(rows: Sequence[Row], cost: str, measure: str) -> list[Row]:
    """The rows whose cost and error are positive, as log axes need."""
    return [row for row in measured(rows, cost, measure) if row[cost] and row[measure]]


def styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each solver, in the order of the rows."""
    names = dict.fromkeys(row["solver"] for row in rows)
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def draw_figure(rows: Sequence[Row], cost: str, measure: str = "rmse") -> Figure:
    """The figure: one panel per grid, on common axes, and one legend."""
    from matplotlib.figure import Figure

    look, found = styles(rows), drawable(rows, cost, measure)
    grids = list(dict.fromkeys(row["grid"] for row in found if row["grid"] != OWN_STEPS)) or [OWN_STEPS]
    across = min(COLUMNS, len(grids))
    down = math.ceil(len(grids) / across)
    names = [*dict.fromkeys(row["solver"] for row in found), FRONT]
    columns = math.ceil(len(names) / math.floor(5.2 * down * PANEL[1]))  # of the legend: 5.2 lines of text are an inch
    legend_width = columns * (0.6 + 0.06 * max(map(len, names)))
    figure = Figure(figsize=(PANEL[0] * across + legend_width, PANEL[1] * down), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    front = pareto(found, cost, measure)
    for i, (panel, grid) in enumerate(zip(panels, grids, strict=False)):
        _panel(panel, [row for row in found if row["grid"] in (grid, OWN_STEPS)], front, look, cost, measure)
        if grid != OWN_STEPS:
            panel.set_title(grid, size=8.5, weight="bold", loc="left")
        _axes(panel, found, cost, measure)
        panel.tick_params(labelbottom=i + across >= len(grids))
    for panel in panels[len(grids) :]:
        panel.remove()
    figure.supxlabel(COSTS[cost], size=8.5)
    figure.supylabel(MEASURES[measure].label, size=8.5)
    lines = {line.get_label(): line for panel in panels[: len(grids)] for line in panel.lines}
    handles = [lines[name] for name in [*look, FRONT] if name in lines]
    figure.legend(handles=handles, loc="outside right upper", ncols=columns, frameon=False, fontsize=7.5, handlelength=2.6)
    return figure


def _panel(axes: Axes, rows: Sequence[Row], front: Sequence[Row], look: dict[str, Any], cost: str, measure: str) -> None:
    """One line per solver, and the front: a staircase below which no row is, and rings around the rows on it."""
    x, y = ([abs(row[name]) for row in front] for name in (cost, measure))
    axes.set(xscale="log", yscale="log")
    axes.plot(x, y, drawstyle="steps-post", color="#bbbbbb", linewidth=4, alpha=0.6, solid_capstyle="butt", label=FRONT)
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
    x, y = ([abs(row[name]) for row in front if row in rows] for name in (cost, measure))
    axes.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor="#333333", markeredgewidth=0.8, label="_on it")


def _axes(axes: Axes, rows: Sequence[Row], cost: str, measure: str) -> None:
    """Ticks at the budgets, named where there is room; light grid lines; no box."""
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
    """The names of ticks on a log axis of this span, empty for a tick too near the last one that has a name."""
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
