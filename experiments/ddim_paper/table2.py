"""Reconstruction: python -m experiments.ddim_paper.table2

Table 2 of the DDIM paper (Song et al., 2021a, section 5.4). Real test images x0 are encoded to x_T with S evaluations of the
network, the ODE run backwards, and decoded with S more. The error is the paper's, "per-dimension mean squared error (scaled to
[0, 1])": the mean over images and dimensions of

    E = (x − x0)² / 4          x, x0 in [−1, 1], so that their halves differ as pixels on [0, 1] do

Nothing is clipped. The error of a step of order p and length h is C h^(p+1), that of the step back C (−h)^(p+1): with odd p the
two add up, with even p they cancel to the next order. So E falls as S^(−2p) for odd p, ddim's 1 among them, and as S^(−2(p+1))
for even p. Beside DDIM stand solvers of higher order at equal cost: S is the most evaluations that may be spent each way, so
a solver with three per step takes S // 3 steps. Whether the network is right does not matter: any ε has an ODE, and E says
how well it is followed.

Two things are not the paper's: the data set, and the clean end. The paper's last step ends at σ = 0; here both ways begin and
end at the first label, where λ is finite, as a backward step out of λ = +∞ does not exist for higher orders. A real image is
taken for the state at that λ, though such a state has noise. So x_T gets too little noise, too: column `x_T` is its mean square
(1 for N(0, I)), and one row starts from α x0 + σ z instead. The row in float64 shows how much of E is rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import torch
from PIL import Image

from diffode.errors import InputError
from diffode.files import atomic
from diffode.images import writers
from diffode.images.datasets import to_pixels
from experiments import published
from experiments.common import figures, results, script_options
from experiments.common.commands import Script, command_line
from experiments.common.markdown import provenance_sentence, table
from experiments.common.options import FileName
from experiments.common.results import Row
from experiments.common.terminal import say
from experiments.ddim_paper.common import prepare_whole_steps
from experiments.ddim_paper.table2_cells import BUDGETS, GRIDS, MOST, SOLVERS, Reconstruction, cells, round_trip
from solvers import find

SHOWN = (10, 20, 50, 100)  # S of the picture
HUES = ("black", "tab:orange", "tab:brown", "tab:olive", "tab:blue", "tab:cyan", "tab:purple", "tab:red")
COLOURS = dict(zip(SOLVERS, HUES, strict=True))


def picture(images: Reconstruction, n: int, budgets: tuple[int, ...]) -> Image.Image:
    """A row for each image: the original, x_T / 3, and what DDIM brings back of it at several S, with equal steps in t."""
    model, x0 = images.model("float32").taking(range(n)), images.x0[:n]
    trips = [round_trip(model, x0.to(model.device), solver="ddim", nfe=nfe, grid="time") for nfe in budgets]
    columns = torch.stack([x0, trips[-1][0].cpu() / 3, *(decoded.cpu() for _, decoded, _ in trips)], 1)
    sheet = writers.grid(to_pixels(columns.flatten(0, 1)), columns=columns.shape[1], width=84 * columns.shape[1])
    return figures.headed(sheet, ["original", "x_T / 3", *(f"S = {nfe}" for nfe in budgets)])


def plot(rows: Sequence[Row], path: Path) -> None:
    """E against S with its standard error, a panel for each grid; the paper's values, of another data set, dotted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2))
    panels = figure.subplots(1, len(GRIDS), sharey=True)
    for axis, (grid, title) in zip(panels, GRIDS.items(), strict=True):
        for solver in dict.fromkeys(row["solver"] for row in rows):
            line = [row for row in _compared(rows) if (row["solver"], row["grid"]) == (solver, grid)]
            nfe, mse, mse_se = ([row[name] for row in line] for name in ("nfe", "mse", "mse_se"))
            axis.errorbar(nfe, mse, mse_se, marker="o", ms=3.5, lw=1.3, color=COLOURS.get(solver), label=solver)
        if grid == "time":  # the paper's
            paper = [(int(row["S"]), float(row["error"])) for row in published.table("ddim_table2")]
            axis.plot(*zip(*paper, strict=True), "k:", marker="s", ms=3.5, mfc="none", label="DDIM on CIFAR-10, the paper")
        axis.set(xscale="log", yscale="log", xlabel="S, evaluations each way", title=title)
        axis.set_xticks(BUDGETS, [str(nfe) for nfe in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    panels[0].set_ylabel("mean squared error, pixels on [0, 1]")
    panels[0].legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    with atomic(path) as part:
        figure.savefig(part, format="png", dpi=130)


def _compared(rows: Sequence[Row]) -> list[Row]:
    """The rows that are compared with each other: in float32, from x0; by S."""
    plain = [row for row in rows if "mse" in row and (row["dtype"], row["start"]) == ("float32", "x0")]
    return sorted(plain, key=lambda row: row["nfe"])


def report(out: Path) -> str:
    """The table of each grid and what it says, in Markdown."""
    about, rows = results.read(out)
    budgets = sorted({row["nfe"] for row in rows})
    at = {(row["grid"], row["solver"], row["nfe"]): row for row in _compared(rows)}
    paper = {int(row["S"]): row["error"] for row in published.table("ddim_table2")}
    parts = []
    for grid, title in GRIDS.items():
        lines = [["*DDIM on CIFAR-10, the paper*", *(paper.get(nfe, "") for nfe in budgets)]] if grid == "time" else []
        for solver in dict.fromkeys(row["solver"] for row in rows):
            here = [at.get((grid, solver, nfe)) for nfe in budgets]
            lines.append([solver, *(f"{row['mse']:.2g} ± {row['mse_se']:.1g}" if row else "" for row in here)])
        head = ["solver", *(f"S = {nfe}" for nfe in budgets)]
        parts.append(f"{title[0].upper()}{title[1:]}:\n\n{table(head, lines)}\n\n{_best(at, grid)}".rstrip())
    parts.append(_rounding_and_noise(rows))
    parts.append(f"{about['images']} images ({about['data']}), ± the standard error over them. {provenance_sentence(about)}")
    return "\n\n".join(filter(None, parts)) + "\n"


def _best(at: Mapping[tuple[str, str, int], Row], grid: str) -> str:
    """How fast ddim's error falls on this grid, and which solver is best at the largest S that all were run at."""
    line = [row for (g, solver, _), row in at.items() if (g, solver) == (grid, "ddim")]
    if len(line) < 2:
        return ""
    a, b = line[0], line[-1]
    slope = math.log(a["mse"] / b["mse"]) / math.log(b["nfe"] / a["nfe"])
    last = [row for row in line if row["nfe"] <= MOST][-1]
    best = min((row for (g, _, nfe), row in at.items() if (g, nfe) == (grid, last["nfe"])), key=lambda row: row["mse"])
    return (
        f"From S = {a['nfe']} to {b['nfe']} the error of ddim falls as S^−{slope:.2f}. At S = {last['nfe']} the best is "
        f"{best['solver']}, with {best['mse']:.2g}; that of ddim is {last['mse'] / best['mse']:,.3g} times as large."
    )


def _rounding_and_noise(rows: Sequence[Row]) -> str:
    """What float64, and the noise at the clean end, change where they were tried."""
    double = next((row for row in rows if "mse" in row and row["dtype"] == "float64"), None)
    if double is None:
        return ""
    here = [row for row in rows if "mse" in row and all(row[name] == double[name] for name in ("solver", "nfe", "grid"))]
    by = {(row["dtype"], row["start"]): row for row in here}
    single, noisy = by["float32", "x0"], by["float32", "x0 + noise"]
    return (
        f"The error of {double['solver']} at S = {double['nfe']} on {double['grid']} is {single['mse']:.2g} in float32 and "
        f"{double['mse']:.2g} in float64: the difference is the rounding of float32. There the mean square of x_T is "
        f"{single['x_T']:.3f} ± {single['x_T_se']:.3f}, and {noisy['x_T']:.3f} ± {noisy['x_T_se']:.3f} where the images were "
        "given the noise of the state at the clean end; that of N(0, I) is 1."
    )


@click.command(cls=Script)
@script_options.model()
@script_options.solvers(SOLVERS)
@click.option("--n", default=50, show_default=True, type=click.IntRange(2, 500), help="How many images.")
@click.option("--data-dir", type=FileName(str), help="Other test images, as `cli.py train` takes them.")
@script_options.seed("Of the noise, in the one row that adds noise to the images.")
@script_options.out("results/table2")
@script_options.overwrite
@script_options.fast("2 images, S = 10 and 20")
def main(
    name: str, solvers: tuple[str, ...], n: int, data_dir: str | None, seed: int, out: Path, overwrite: bool, fast: bool
) -> None:
    """Encode real images and decode them, by each solver at equal cost: Table 2 of the DDIM paper."""
    figures.require_matplotlib()
    budgets, shown = ((10, 20), (10, 20)) if fast else (BUDGETS, SHOWN)
    images = Reconstruction(name, 2 if fast else n, data_dir, seed)
    for solver in solvers:
        prepare_whole_steps(solver, images.model("float32"), min(budgets), "time")
        if find(solver).stochastic:
            raise InputError(f"{solver} draws noise and cannot be run backwards: take a deterministic solver")
    rows = results.fill(
        out,
        cells(solvers, budgets),
        images.measure,
        about=images.about,
        command=command_line(),
        overwrite=overwrite,
        also=(".png", "-images.png"),
    )
    results.finish(rows, out)
    plot(rows, results.with_suffix(out, ".png"))
    sheet = picture(images, min(8, len(images.x0)), shown)
    with atomic(results.with_suffix(out, "-images.png")) as part:
        sheet.save(part, format="PNG")
    say(report(out))


if __name__ == "__main__":
    main()
