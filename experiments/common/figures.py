"""Pictures of numbers: a plan as a heat map, a trajectory as a sheet of its states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffode.errors import InputError
from diffode.files import atomic
from diffode.images import drawings, writers
from solvers import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

Floats = NDArray[np.floating[Any]]
MOST_IMAGES, MOST_STATES = 8, 12  # on a sheet
STATE = 84  # pixels of a state, about
HEADER, GAP = 20, 10
MOST_NUMBERS = 12  # evaluations of a plan whose numbers are written into its cells
LARGEST = 24.0  # inches of a heat map


def trajectory(lam: Floats, x: Floats, x0: Floats | None = None) -> Image.Image:
    """A sheet of states: columns are λ, evenly chosen from first to last; each sample has a row of x and a row of x̂0.

    lam: (states,); x, x0: (samples, states, *shape). An image is scaled into [−1, 1] by the quantile 0.995 of |x|, and never
    enlarged; where there is no x̂0 yet (NaN) it is grey. Of what is no image each state is drawn, within its own range.
    """
    chosen = np.linspace(0, len(lam) - 1, min(len(lam), MOST_STATES)).round().astype(int)
    together = drawings.are_drawn_together(x.shape[2:])
    both = [each[: None if together else MOST_IMAGES, chosen] for each in (x, x0) if each is not None]
    if drawings.are_images(x.shape[2:]):
        both[0] = both[0] / np.maximum(np.quantile(abs(both[0]), 0.995, axis=(2, 3, 4), keepdims=True), 1)
    states = [torch.from_numpy(np.nan_to_num(each).astype(np.float32)) for each in both]
    rows = [np.stack([drawings.tiles(state, width=STATE) for state in each.unbind(1)], 1) for each in states]
    pairs = [writers.grid(pair, columns=len(chosen), width=STATE * len(chosen)) for pair in np.concatenate(rows, 1)]
    return headed(stacked(pairs), [f"{value:+.2f}" for value in lam[chosen]])


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets of one width below each other, a gap between them."""
    whole = Image.new(sheets[0].mode, (sheets[0].width, sum(sheet.height + GAP for sheet in sheets) - GAP), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height + GAP
    return whole


def headed(sheet: Image.Image, names: Sequence[str]) -> Image.Image:
    """The sheet with a line above it that has a name for each of its columns."""
    width, height = sheet.size
    whole = Image.new(sheet.mode, (width, HEADER + height), "white")
    whole.paste(sheet, (0, HEADER))
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(13)
    for column, name in enumerate(names):
        pen.text(((column + 0.5) * width / len(names), HEADER / 2), name, "black", font, anchor="mm")
    return whole


def heatmap(plan: Plan, path: str | Path) -> None:
    """Draw a plan's matrix to a PNG: a row a stage, with its λ, E where it evaluates and K where it commits; columns x, noise,
    m0, m1, ... Red is positive, blue negative, on a scale linear about 0 and logarithmic beyond; what is not there is grey.

    InputError without matplotlib.
    """
    figure = _figure(plan)
    with atomic(path) as part:
        figure.savefig(part, format="png", dpi=160, bbox_inches="tight", pad_inches=0.15)


def require_matplotlib() -> None:
    """InputError if it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("drawing takes matplotlib, which is not installed: pip install 'diffode[plots]'") from error


def _figure(plan: Plan) -> Figure:
    require_matplotlib()
    from matplotlib.colors import SymLogNorm
    from matplotlib.figure import Figure

    matrix, written = plan.matrix(), plan.nfe <= MOST_NUMBERS
    live = np.array([[True, stage.draw is not None, *(j in stage.c for j in range(plan.nfe))] for stage in plan.stages])
    sizes = abs(matrix[live & (matrix != 0)])
    ends = 1.7 * sizes.max()  # the darkest ends of the colours hide differences
    norm = SymLogNorm(linthresh=max(sizes.min(), sizes.max() / 1e3), vmin=-ends, vmax=ends)
    wide, high = (0.66, 0.34) if written else 2 * (min(0.18, LARGEST / max(matrix.shape)),)
    width, height = matrix.shape[1] * wide, matrix.shape[0] * high
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    shown = np.ma.masked_array(matrix, ~live)
    mesh: ScalarMappable
    if high > 0.1:
        mesh = axes.pcolormesh(shown, cmap="RdBu_r", norm=norm, edgecolors="white", linewidth=1.5 if written else 0.5)
    else:  # too many cells to be drawn one by one
        mesh = axes.pcolorfast(shown, cmap="RdBu_r", norm=norm)
    axes.set_facecolor("#f1f1ef")
    axes.invert_yaxis()
    _label(axes, plan, 8 if written else 6, high)
    if written:
        for row, column in zip(*np.nonzero(live), strict=True):
            color = "white" if abs(norm(matrix[row, column]) - 0.5) > 0.28 else "#222222"
            axes.text(column + 0.5, row + 0.5, _text(matrix[row, column], ".3g"), size=7.5, ha="center", va="center", color=color)
    tall = min(height, 4.0)
    bar = figure.add_axes((1 + 0.25 / width, 1 - tall / height, 0.14 / width, tall / height))
    figure.colorbar(mesh, cax=bar, format=lambda number, _: _text(number, "g"))
    bar.tick_params(labelsize=7, length=2, width=0.5)
    bar.minorticks_off()
    for spine in (*axes.spines.values(), *bar.spines.values()):
        spine.set_visible(False)
    return figure


def _label(axes: Axes, plan: Plan, size: float, high: float) -> None:
    """Names of columns, λ and flags of stages, the plan's first line, and a gap after each committed state."""
    mono: dict[str, Any] = {"family": "monospace", "size": size}
    names = ["x", "noise", *(f"m{j}" for j in range(plan.nfe))]
    flags = [f"{'E' if stage.evaluate else '·'} {'K' if stage.commit else '·'}" for stage in plan.stages]
    stages = [f"{_text(stage.lam, '+8.3f')}  {flag}" for stage, flag in zip(plan.stages, flags, strict=True)]
    every = int(np.ceil(0.12 / high))  # labels that stay apart
    columns = [*range(2), *range(2, len(names), every)]
    axes.xaxis.tick_top()
    axes.set_xticks([i + 0.5 for i in columns], [names[i] for i in columns], rotation=90 * (size < 8), **mono)
    axes.set_yticks(np.arange(0.5, len(stages), every), stages[::every], **mono)
    axes.tick_params(length=0, pad=4)
    axes.axvline(2, color="white", linewidth=14 * high)
    if high > 0.1 and not all(stage.commit for stage in plan.stages):
        for row, stage in enumerate(plan.stages, 1):
            if stage.commit and row < len(stages):
                axes.axhline(row, color="white", linewidth=12 * high)
    axes.set_title(str(plan).partition("\n")[0], loc="left", size=9.5, pad=10)
    axes.annotate("λ       E K", (0, 1), (-4, 5), xycoords="axes fraction", textcoords="offset points", ha="right", **mono)


def _text(number: float, form: str) -> str:
    """The number with a minus sign as wide as a plus."""
    return format(number, form).replace("-", "−")
