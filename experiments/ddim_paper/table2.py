"""Reconstruction: python -m experiments.ddim_paper.table2

Table 2 of the DDIM paper (Song et al., 2021a, section 5.4). Real test images x0 are encoded to x_T with S evaluations of the
network, the ODE run backwards, and decoded with S more. The error is the paper's, "per-dimension mean squared error (scaled to
[0, 1])": the mean over images and dimensions of

    E = (x − x0)² / 4          x, x0 in [−1, 1], so that their halves differ as pixels on [0, 1] do

Nothing is clipped. A step of order p and length h is off by C h^(p+1), the step back by C (−h)^(p+1): with odd p the two add up,
with even p they cancel to the next order. So E falls as S^(−2p) for odd p, ddim's 1 among them, and as S^(−2(p+1)) for even p.
Beside DDIM stand solvers of higher order at equal cost: S is the most that they may spend each way, so with three evaluations a
step they take S // 3 steps. Whether the network is right does not matter: any ε has an ODE, and E says how well it is followed.

Two things are not the paper's: the data set, and the clean end. The paper's last step ends at σ = 0; here both ways begin and
end at the first label, where λ is finite, as a backward step out of λ = +∞ does not exist for higher orders. A real image is
taken for the state there, which would have noise of its σ; without it x_T has too little noise as well: see `x_T`, its mean
square, which is 1 for N(0, I), and the row that begins at α x0 + σ z. What float64 changes is the share of float32's rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch import Tensor

from diffode import grid as grids
from diffode.errors import InputError
from diffode.files import atomic
from diffode.images import datasets, writers
from diffode.images.datasets import to_pixels, to_tensor
from diffode.mixture import Mixture
from diffode.model import EpsModel
from diffode.models import pretrained
from diffode.noise import SeededNoise
from diffode.schedule import Schedule
from experiments import published as reference
from experiments.common import figures, results
from experiments.common.commands import Script, command_line
from experiments.common.examples import own_images, real_images
from experiments.common.markdown import provenance_sentence, table
from solvers import encode, sample
from solvers.registry import find

GRIDS = {"time": "equal steps in t, like the paper's τ", "logsnr": "equal steps in λ"}
BUDGETS = (10, 20, 50, 100, 200, 500, 1000)
SOLVERS = ("ddim", "dpm2", "heun", "dpm3", "dpmpp2m", "dpmpp3m", "ipndm", "unipc3")
MOST = 200  # evaluations of a solver other than ddim: more would show rounding
FLOOR: dict[str, Any] = {"solver": "unipc3", "nfe": 500, "grid": "logsnr"}  # where that is looked at
SHOWN = (10, 20, 50, 100)  # S of the picture
HUES = ("black", "tab:orange", "tab:brown", "tab:olive", "tab:blue", "tab:cyan", "tab:purple", "tab:red")
COLOURS = dict(zip(SOLVERS, HUES, strict=True))


def whole_steps(solver: str, schedule: Schedule, nfe: int, grid: str) -> int:
    """The steps that a solver takes with nfe evaluations at most; InputError if their number does not say what it costs."""
    entry = find(solver)
    steps = nfe // (entry.evaluations or 1)
    spent = entry.nfe(grids.make(grid, schedule, steps), schedule)
    if spent > nfe:
        raise InputError(f"{solver} spends {spent} evaluations on {steps} steps, and cannot be compared at {nfe}")
    return steps


def round_trip(model: EpsModel, x0: Tensor, *, solver: str, nfe: int, grid: str) -> tuple[Tensor, Tensor, int]:
    """x_T of x0 (batch, *shape), what x_T is decoded to, and what each way spent: the most in whole steps that is not over nfe.

    InputError for solvers that cannot be run backwards.
    """
    how: dict[str, Any] = {"solver": solver, "steps": whole_steps(solver, model.schedule, nfe, grid), "grid": grid}
    encoded = encode(model, x0, **how)
    return encoded.x, sample(model, x=encoded.x, **how).x, encoded.nfe


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of values (n,), and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def images_of(loaded: pretrained.Pretrained, n: int, data_dir: str | None) -> tuple[Tensor, Tensor | None, str]:
    """Images in [−1, 1], their labels if there are any, and what they are.

    The first n at data_dir; without it n of Fashion-MNIST's test images, a class in turn, or of a mixture's own exact samples, as
    real images are far from all that a mixture knows, where its flow is not smooth. InputError unless they fit the model.
    """
    labels: Tensor | None
    network, classes = loaded.model.network, loaded.model.classes
    if data_dir is not None:
        found = datasets.load(data_dir, "test")
        x0, labels = to_tensor(found.pixels[:n]), None if found.labels is None else torch.from_numpy(found.labels[:n])
        what = f"the first of {data_dir}"
    elif isinstance(network, Mixture):
        labels = torch.arange(n) % classes if classes else None
        x0 = own_images(network, labels, n)
        what = "exact samples of the mixture, a class in turn"
    else:
        (x0, labels), what = real_images(n), "Fashion-MNIST test, a class in turn"
    if tuple(x0.shape[1:]) != loaded.image:
        raise InputError(f"the images are {tuple(x0.shape[1:])}, those of the model {loaded.image}: name others with --data-dir")
    return x0, labels, what


class Bench:
    """The images and the model, in either precision, and what they give at a cell."""

    def __init__(self, name: str, n: int, data_dir: str | None, seed: int) -> None:
        self.name, self.seed = name, seed
        loaded = pretrained.load(name)
        self.x0, self.labels, what = images_of(loaded, n, data_dir)
        self.about = {"model": name, "sha256": loaded.sha256, "images": len(self.x0), "data": what, "seed": seed}

    def model(self, dtype: str) -> EpsModel:
        model = pretrained.load(self.name, getattr(torch, dtype)).model
        return model.labelled(self.labels) if model.classes and self.labels is not None else model

    def start(self, model: EpsModel, cell: Mapping[str, Any]) -> Tensor:
        """x0, or α x0 + σ z, the state at the clean end that x0 would be a part of."""
        x0 = self.x0.to(model.device, getattr(torch, cell["dtype"]))
        if cell["start"] == "x0":
            return x0
        alpha, sigma = model.schedule.path.at(model.schedule.lam_max)
        return alpha * x0 + sigma * SeededNoise(range(self.seed, self.seed + len(x0)))(0, x0)

    def measure(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """E and its standard error over images, and the mean square of x_T."""
        model = self.model(cell["dtype"])
        start = self.start(model, cell)
        encoded, decoded, spent = round_trip(model, start, **{name: cell[name] for name in ("solver", "nfe", "grid")})
        mse, mse_se = mean_and_error(((decoded - start) / 2).square().flatten(1).mean(1))
        x_T, x_T_se = mean_and_error(encoded.square().flatten(1).mean(1))  # noqa: N806
        return {"spent": spent, "mse": mse, "mse_se": mse_se, "x_T": x_T, "x_T_se": x_T_se}


def cells(solvers: tuple[str, ...], budgets: tuple[int, ...]) -> list[dict[str, Any]]:
    """Every solver at every budget on both grids, and two more: what float64 and what the noise at the clean end change."""
    plain = {"dtype": "float32", "start": "x0"}
    swept = [
        {"solver": solver, "nfe": nfe, "grid": grid, **plain}
        for grid in GRIDS
        for solver in solvers
        for nfe in budgets
        if solver == "ddim" or nfe <= MOST
    ]
    floor = {**FLOOR, "nfe": min(FLOOR["nfe"], max(budgets))}
    extra = [floor | plain, floor | plain | {"dtype": "float64"}, floor | plain | {"start": "x0 + noise"}]
    return swept + [cell for cell in extra if cell not in swept]


def picture(bench: Bench, n: int, budgets: tuple[int, ...]) -> Image.Image:
    """A row an image: the original, x_T / 3, and what DDIM brings back of it at several S, with equal steps in t."""
    model, x0 = bench.model("float32").taking(range(n)), bench.x0[:n]
    trips = [round_trip(model, x0.to(model.device), solver="ddim", nfe=nfe, grid="time") for nfe in budgets]
    columns = torch.stack([x0, trips[-1][0].cpu() / 3, *(decoded.cpu() for _, decoded, _ in trips)], 1)
    sheet = writers.grid(to_pixels(columns.flatten(0, 1)), columns=columns.shape[1], width=84 * columns.shape[1])
    return figures.headed(sheet, ["original", "x_T", *(f"S = {nfe}" for nfe in budgets)])


def plot(found: list[results.Row], path: Path) -> None:
    """E against S, a panel a grid, with the standard errors; the paper's values, of another data set, dotted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2))
    panels = figure.subplots(1, len(GRIDS), sharey=True)
    for axis, (grid, title) in zip(panels, GRIDS.items(), strict=True):
        for solver in dict.fromkeys(row["solver"] for row in found):
            line = [row for row in _plain(found) if (row["solver"], row["grid"]) == (solver, grid)]
            nfe, mse, mse_se = ([row[name] for row in line] for name in ("nfe", "mse", "mse_se"))
            axis.errorbar(nfe, mse, mse_se, marker="o", ms=3.5, lw=1.3, color=COLOURS.get(solver), label=solver)
        published = [(int(row["S"]), float(row["error"])) for row in reference.table("ddim_table2")]
        axis.plot(*zip(*published, strict=True), "k:", marker="s", ms=3.5, mfc="none", label="DDIM on CIFAR-10, the paper")
        axis.set(xscale="log", yscale="log", xlabel="S, evaluations each way", title=title)
        axis.set_xticks(BUDGETS, [str(nfe) for nfe in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    panels[0].set_ylabel("mean squared error, pixels on [0, 1]")
    panels[0].legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    with atomic(path) as part:
        figure.savefig(part, format="png", dpi=130)


def _plain(found: list[results.Row]) -> list[results.Row]:
    """The rows that are compared: in float32, from x0, in the order of S."""
    kept = [row for row in found if "mse" in row and (row["dtype"], row["start"]) == ("float32", "x0")]
    return sorted(kept, key=lambda row: row["nfe"])


def report(out: Path) -> str:
    """The table of each grid and what it says, in Markdown."""
    about, found = results.read(out)
    budgets = sorted({row["nfe"] for row in found})
    at = {(row["grid"], row["solver"], row["nfe"]): row for row in _plain(found)}
    published = {int(row["S"]): row["error"] for row in reference.table("ddim_table2")}
    parts = []
    for grid, title in GRIDS.items():
        lines = [["*DDIM on CIFAR-10, the paper*", *(published.get(nfe, "") for nfe in budgets)]] if grid == "time" else []
        for solver in dict.fromkeys(row["solver"] for row in found):
            here = [at.get((grid, solver, nfe)) for nfe in budgets]
            lines.append([solver, *(f"{row['mse']:.2g} ± {row['mse_se']:.1g}" if row else "" for row in here)])
        head = ["solver", *(f"S = {nfe}" for nfe in budgets)]
        parts.append(f"{title[0].upper()}{title[1:]}:\n\n{table(head, lines)}\n\n{_compared(at, grid)}".rstrip())
    parts.append(_looked_at(found))
    parts.append(f"{about['images']} images ({about['data']}), ± the standard error over them. {provenance_sentence(about)}")
    return "\n\n".join(filter(None, parts)) + "\n"


def _compared(at: Mapping[tuple[str, str, int], results.Row], grid: str) -> str:
    """How fast ddim's error falls on this grid, and what is best where all have been."""
    line = [row for (g, solver, _), row in at.items() if (g, solver) == (grid, "ddim")]
    if len(line) < 2:
        return ""
    a, b = line[0], line[-1]
    slope = math.log(a["mse"] / b["mse"]) / math.log(b["nfe"] / a["nfe"])
    last = [row for row in line if row["nfe"] <= MOST][-1]
    best = min((row for (g, _, nfe), row in at.items() if (g, nfe) == (grid, last["nfe"])), key=lambda row: row["mse"])
    return (
        f"From S = {a['nfe']} to {b['nfe']} the error of ddim falls as S^−{slope:.2f}. At S = {last['nfe']} the best is "
        f"{best['solver']}, with {best['mse']:.2g}; ddim has {last['mse'] / best['mse']:,.3g} times as much."
    )


def _looked_at(found: list[results.Row]) -> str:
    """What float64 and the noise at the clean end change, where they were looked at."""
    double = next((row for row in found if "mse" in row and row["dtype"] == "float64"), None)
    if double is None:
        return ""
    here = [row for row in found if "mse" in row and all(row[name] == double[name] for name in ("solver", "nfe", "grid"))]
    of = {(row["dtype"], row["start"]): row for row in here}
    single, noisy = of["float32", "x0"], of["float32", "x0 + noise"]
    return (
        f"{double['solver']} at S = {double['nfe']} on {double['grid']} has {single['mse']:.2g} in float32 and "
        f"{double['mse']:.2g} in float64: the difference is what float32 rounds. There x_T has a mean square of "
        f"{single['x_T']:.3f} ± {single['x_T_se']:.3f}, and of {noisy['x_T']:.3f} ± {noisy['x_T_se']:.3f} where the images were "
        "given the noise of the state at the clean end; N(0, I) has 1."
    )


@click.command(cls=Script)
@click.option("--model", "name", default="fashion", show_default=True, help="As `cli.py sample` takes it.")
@click.option("--solver", "solvers", multiple=True, default=SOLVERS, help=f"May be given again. [default: {', '.join(SOLVERS)}]")
@click.option("--n", default=50, show_default=True, type=click.IntRange(2, 500), help="Images.")
@click.option("--data-dir", help="Other test images, as `cli.py train` takes them.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the noise in the row that has any.")
@click.option("--out", default="results/table2", show_default=True, type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Begin again where there are results.")
@click.option("--fast", is_flag=True, help="Only to see that it runs: 2 images, S = 10 and 20.")
def main(
    name: str, solvers: tuple[str, ...], n: int, data_dir: str | None, seed: int, out: Path, overwrite: bool, fast: bool
) -> None:
    """Encode real images and decode them, by each solver at equal cost: Table 2 of the DDIM paper."""
    figures.require_matplotlib()
    budgets, shown = ((10, 20), (10, 20)) if fast else (BUDGETS, SHOWN)
    bench = Bench(name, 2 if fast else n, data_dir, seed)
    for solver in solvers:
        whole_steps(solver, bench.model("float32").schedule, min(budgets), "time")
        if find(solver).stochastic:
            raise InputError(f"{solver} draws noise and cannot be run backwards: take a deterministic solver")
    command = command_line()
    made = results.fill(out, cells(solvers, budgets), bench.measure, about=bench.about, command=command, overwrite=overwrite)
    results.finish(made, out)
    plot(made, results.with_suffix(out, ".png"))
    sheet = picture(bench, min(8, len(bench.x0)), shown)
    with atomic(results.with_suffix(out, "-images.png")) as part:
        sheet.save(part, format="PNG")
    click.echo(report(out))


if __name__ == "__main__":
    main()
