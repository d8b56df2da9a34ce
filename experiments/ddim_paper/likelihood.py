"""Bits/dim of images: python -m experiments.ddim_paper.likelihood --model fashion

log p(x | label) by diffode.likelihood, for test images of Fashion-MNIST made continuous by `--draws` uniform noises each: in
expectation an upper bound. The trace is Hutchinson's estimate. All solvers have the same images, noises and probes at all
budgets, so that they alone differ; one more row has more images, for the number itself.

    bits_se         standard error over the images
    bits_se_draws   for these images, over noises and probes
    bits_se_probes  for these images and noises, over the probes

An exact mixture has its trace in closed form, so that all error is the solver's: `rms` and `worst` are the errors of log p, in
nats, against log_density. Its own samples, as they are, stand beside the real images. For it log p at λ_min is exact;
`normal_worst` is the largest change of log p if N(0, σ² I), the prior of a network, took its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from diffode.errors import InputError
from diffode.files import atomic
from diffode.images import datasets
from diffode.images.datasets import to_pixels
from diffode.likelihood import dequantised, log_likelihood, normal
from diffode.mixture import Mixture
from diffode.models import pretrained
from experiments.common import figures, results, script_options
from experiments.common.commands import Script, command_line
from experiments.common.examples import exact_samples, real_images
from experiments.common.markdown import provenance_sentence, table
from experiments.common.results import Row
from experiments.common.terminal import say
from solvers import encode

PLANNED = ("ddim", "dpm2", "dpm3", "dpmpp2m", "unipc3")
ADAPTIVE = "dopri5"
BUDGETS, TOLERANCES = (12, 24, 36, 48, 96), (1e-3, 1e-4, 1e-5, 1e-6)
MORE, TIGHTER = (192,), (1e-7, 1e-8)  # where evaluations are cheap
BEST = {"solver": "unipc3", "nfe": 48, "rtol": None}  # of the row with more images
BATCH = 64
IMAGES = {"real": "real test images", "own": "samples of the mixture itself"}
Cell = Mapping[str, Any]


class DensityModel:
    """A model, and the row of a cell. about: what decides all rows beside their cells."""

    def __init__(self, name: str, draws: int, probes: int, seed: int) -> None:
        loaded = pretrained.load(name)
        if loaded.card.kind == "mixture":
            loaded = pretrained.load(name, torch.float64)
        if (loaded.image, len(loaded.classes)) != ((1, 28, 28), len(datasets.FASHION_CLASSES)):
            raise InputError(f"{name} is not a model of Fashion-MNIST, on whose test images this is measured")
        network = loaded.model.network
        self.mixture = network if isinstance(network, Mixture) else None
        self.model = loaded.model
        self.draws, self.probes, self.seed = draws, 0 if self.mixture else probes, seed
        self.about = {"model": name, "sha256": loaded.sha256, "draws": draws, "probes": self.probes, "seed": seed}

    def images(self, kind: str, n: int) -> tuple[Tensor, Tensor]:
        """x0 (draws · n, *image), draw by draw, and their labels: real images, or one sample each of a mixture's own."""
        if kind == "own" and self.mixture:
            labels = torch.arange(n) % self.model.classes
            return exact_samples(self.mixture, labels, n, self.seed), labels
        real, labels = real_images(n)
        seeds = range(self.seed, self.seed + self.draws * n)
        return dequantised(to_pixels(real.repeat(self.draws, 1, 1, 1)), seeds), labels.repeat(self.draws)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """The row of a cell."""
        x0, labels = self.images(cell["images"], cell["n"])
        how = {"nfe": cell["nfe"]} if cell["rtol"] is None else {"rtol": cell["rtol"], "atol": cell["rtol"]}
        parts = [self._part(x0[i : i + BATCH], labels[i : i + BATCH], i, cell["solver"], how) for i in range(0, len(x0), BATCH)]
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        spent = max(int(nfe) for nfe in columns.pop("spent"))
        bits, n = columns["bits"].view(-1, cell["n"]), cell["n"]
        row = {
            "spent": spent,
            "log_p": columns["log_p"].mean(),
            "bits": bits.mean(),
            "bits_se": bits.mean(0).std() / math.sqrt(n),
        }
        if len(bits) > 1:
            row["bits_se_draws"] = (bits.var(0).mean() / bits.numel()).sqrt()
        if self.probes > 1:
            row["bits_se_probes"] = columns["bits_stderr"].square().mean().sqrt() / math.sqrt(bits.numel())
        if "exact" in columns:
            error = columns["log_p"] - columns["exact"]
            row |= {"rms": error.square().mean().sqrt(), "worst": error.abs().max()}
            row |= {"exact_log_p": columns["exact"].mean(), "normal_worst": columns["normal"].abs().max()}
        return {name: float(value) if isinstance(value, Tensor) else value for name, value in row.items()}

    def _part(self, x0: Tensor, labels: Tensor, first: int, solver: str, how: dict[str, Any]) -> dict[str, Tensor]:
        """The columns of these images, of which the first has the seed of image `first`."""
        model, mixture, seeds = self.model.labelled(labels), self.mixture, range(self.seed + first, self.seed + first + len(x0))
        part = {}
        if mixture is None:
            found = log_likelihood(model, x0, encode, probes=self.probes, seed=seeds, solver=solver, **how)
        else:

            def density(x: Tensor, lam: float) -> Tensor:
                return mixture.log_density(x, torch.full((len(x),), lam, dtype=x.dtype), labels)

            found = log_likelihood(model, x0, encode, probes=0, end=density, solver=solver, **how)
            lam_min, lam_max, path = model.schedule.lam_min, model.schedule.lam_max, model.schedule.path
            (_, sigma), (alpha, _) = path.at(lam_min), path.at(lam_max)
            part["exact"] = density(alpha * x0, lam_max) + x0[0].numel() * math.log(alpha)
            part["normal"] = normal(found.x, sigma) - density(found.x, lam_min)
        columns = {"log_p": found.log_p, "bits": found.bits_per_dim, "bits_stderr": found.bits_stderr}
        return {**columns, **part, "spent": torch.tensor([found.nfe])}


def cells(exact: bool, n: int, many: int, fast: bool) -> list[dict[str, Any]]:
    """Every solver at every budget on n images, and of a network the best on `many` images."""
    budgets, tolerances = (BUDGETS + MORE * exact, TOLERANCES + TIGHTER * exact) if not fast else ((6,), (1e-2,))
    ways = [{"solver": ADAPTIVE, "nfe": None, "rtol": rtol} for rtol in tolerances]
    ways += [{"solver": solver, "nfe": nfe, "rtol": None} for solver in PLANNED for nfe in budgets]
    swept = [{"images": kind, "n": n, **way} for kind in ("real", "own")[: 1 + exact] for way in ways]
    return swept if fast or exact else [*swept, {"images": "real", "n": many, **BEST}]


def _swept(rows: list[Row], kind: str) -> list[Row]:
    """The rows of all solvers on the same images of a kind."""
    of_kind = [row for row in rows if row["images"] == kind]
    return [row for row in of_kind if row["n"] == min(row["n"] for row in of_kind)]


def plot(rows: list[Row], path: Path) -> None:
    """The error against the evaluations: rms in nats where it is known, else |bits/dim| from those at the tightest tolerance."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["images"] for row in rows))
    figure = Figure(figsize=(5.5 * len(kinds), 4.6))
    for axis, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        swept = _swept(rows, kind)
        tightest = min(swept, key=lambda row: row["rtol"] or math.inf)
        for solver in dict.fromkeys(row["solver"] for row in swept):
            line = [row for row in swept if row["solver"] == solver and ("rms" in row or row is not tightest)]
            errors = [row["rms"] if "rms" in row else abs(row["bits"] - tightest["bits"]) for row in line]
            axis.plot([row["spent"] for row in line], errors, "s--" if solver == ADAPTIVE else "o-", ms=4, lw=1.3, label=solver)
        label = "rms error of log p, nats" if "rms" in tightest else f"|bits/dim − those of {ADAPTIVE} at {tightest['rtol']:g}|"
        axis.set(xscale="log", yscale="log", xlabel="evaluations of T and its trace", ylabel=label, title=IMAGES[kind])
        ticks = [nfe for nfe in (12 * 2**k for k in range(8)) if nfe <= max(row["spent"] for row in swept)]
        axis.set_xticks(ticks, [str(nfe) for nfe in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    with atomic(path) as part:
        figure.savefig(part, format="png", dpi=130)


def report(out: Path) -> str:
    """The bits/dim, and a table of the solvers, for each kind of images, in Markdown."""
    about, rows = results.read(out)
    rows = [row for row in rows if "error" not in row]
    parts = []
    for kind in dict.fromkeys(row["images"] for row in rows):
        swept = _swept(rows, kind)
        exact = "rms" in swept[0]
        value = (lambda row: f"{row['rms']:.2g}") if exact else (lambda row: f"{row['bits']:.4f}")
        parts.append(_bits_per_dim(about, [row for row in rows if row["images"] == kind]))
        planned = {(row["solver"], row["nfe"]): value(row) for row in swept if row["rtol"] is None}
        budgets = sorted({nfe for _, nfe in planned})
        lines = [
            [name, *(planned.get((name, nfe), "") for nfe in budgets)] for name in dict.fromkeys(name for name, _ in planned)
        ]
        what = "The error of log p, rms in nats" if exact else f"Bits/dim of {swept[0]['n']} of the images"
        parts.append(f"{what}, by plans:\n\n{table(['solver', *(f'NFE = {nfe}' for nfe in budgets)], lines)}")
        free = [row for row in swept if row["rtol"] is not None]
        lines = [[f"{row['rtol']:g}", str(row["spent"]), value(row)] for row in free]
        parts.append(
            f"and by {ADAPTIVE} of torchdiffeq:\n\n{table(['rtol = atol', 'NFE', 'error' if exact else 'bits/dim'], lines)}"
        )
    return "\n\n".join([*parts, provenance_sentence(about)]) + "\n"


def _bits_per_dim(about: Mapping[str, Any], rows: list[Row]) -> str:
    """The bits/dim of the row with the most images, or of the most exact one."""
    best = max(rows, key=lambda row: (row["n"], -row.get("rms", 0.0)))
    errors = {
        "images": "bits_se",
        "noises and probes" if about["probes"] else "noises": "bits_se_draws",
        "probes": "bits_se_probes",
    }
    errors_text = ", ".join(f"{best[name]:.4f} over the {what}" for what, name in errors.items() if name in best)
    noises = f", {about['draws']} uniform noises each" if best["images"] == "real" else ""
    solver = f"{best['solver']} with {best['spent']} evaluations"
    text = (
        f"{best['n']} {IMAGES[best['images']]}{noises}, given their labels, have "
        f"{best['bits']:.4f} bits/dim, an average log p of {best['log_p']:.2f} nats, by {solver}; standard errors: {errors_text}."
    )
    if "rms" in best:
        text += (
            f" The exact average is {best['exact_log_p']:.6f} nats; the error is {best['rms']:.1g} nats rms and at most "
            f"{best['worst']:.1g}. With N(0, σ² I) at λ_min log p would differ by at most {best['normal_worst']:.2g} nats."
        )
    return text


@click.command(cls=Script)
@script_options.model()
@click.option("--n", type=click.IntRange(2, 500), help="Images for all solvers. [default: 10; of a mixture 100]")
@click.option("--many", default=300, show_default=True, type=click.IntRange(2, 500), help="Images of the one row with more.")
@click.option("--draws", default=2, show_default=True, type=click.IntRange(1, 100), help="Uniform noises added to each image.")
@click.option("--probes", default=2, show_default=True, type=click.IntRange(1, 100), help="Of the trace of a network.")
@script_options.seed("The first seed, of noises and probes.")
@script_options.out(None, "OUT.csv, OUT.json and OUT.png: a name without suffix. [default: results/likelihood_MODEL]")
@script_options.overwrite
@script_options.fast("2 images, few evaluations")
def main(
    name: str, n: int | None, many: int, draws: int, probes: int, seed: int, out: Path | None, overwrite: bool, fast: bool
) -> None:
    """Bits/dim of test images under a model, by fixed-step plans and by torchdiffeq."""
    figures.require_matplotlib()
    out = out or Path("results") / f"likelihood_{Path(name).stem}"
    model = DensityModel(name, draws, probes, seed)
    exact = model.mixture is not None
    n = 2 if fast else n or (100 if exact else 10)
    wanted, command = cells(exact, n, max(n, many), fast), command_line()
    rows = results.fill(out, wanted, model.measure, about=model.about, command=command, overwrite=overwrite, also=(".png",))
    if good := [row for row in rows if "error" not in row]:
        plot(good, results.with_suffix(out, ".png"))
    say(report(out))
    results.finish(rows, out)


if __name__ == "__main__":
    main()
