"""Theorem 1 of the DDIM paper (Lemma 2 of Ma's slides on it, 2023), both sides computed:
python -m experiments.ddim_paper.theorem1

    J_σ = E[log q_σ(x_1, ..., x_T | x0) − log p_θ(x_0, ..., x_T)]                           Eq. 11
    L_γ = Σ_t γ_t E‖ε_θ(x_t) − ε_t‖²,    x_t = α_t x0 + σ_t ε_t                             Eq. 5
    C   = E KL(q(x_T | x0) ‖ N(0, I)) + (d/2) log(2π n_1²)

say J_σ = L_γ + C for every ε_θ, with the γ of diffode/ddim_family.py, ‖·‖² a sum over d pixels and n_1 the paper's σ_1. J is
taken as it is written: trajectories are drawn from q_σ by Eq. 7, and the logarithms of their densities under q_σ and p_θ are
subtracted; no divergence is expanded. L is taken twice: at the states of the same trajectories, where ε_t = (x_t − α_t x0)/σ_t
("paired", which leaves little Monte Carlo error), and at independent states, drawn by Eq. 4 ("apart"). q(x0) is the uniform
distribution on n images, so C is exact. The noise of an image is the same for every ε_θ. All numbers are in nats per image.

Beside γ stand the weights of the slides' (17), after the paper's appendix B, and weights that lack one of the two factors lost
there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from diffode import grid
from diffode.ddim_family import Family, largest, noise_hat, noise_of_eta
from diffode.models import pretrained
from diffode.noise import Noise, SeededNoise
from diffode.schedule import Array, Schedule
from experiments.common import results, script_options
from experiments.common.commands import Script, command_line
from experiments.common.markdown import run_sentence, table
from experiments.common.options import MOST_IMAGES
from experiments.common.results import Row
from experiments.common.terminal import say
from experiments.ddim_paper.theorem1_models import MODELS, VARIANTS, Eps, Theorem1Model

TAU = "tau-quadratic"
BATCH = 128
N = {"mixture": 10_000, "fashion": 1_000}
N_FAST = {"mixture": 128, "fashion": 10}

WRONG = {  # name -> formula, in the paper's symbols; γ is c² (1 − α)/(2σ²α)
    "without c": "(1 − α)/(2σ²α)",
    "without 1 - alpha": "c²/(2σ²α)",
    "without both": "1/(2σ²α)",
    "slides": "1/(2dσ²α)",
}


def wrong_weights(q: Family, d: int) -> dict[str, Array]:
    """The weights of WRONG, one for each step."""
    both = 1 / (2 * q.noise**2 * q.alpha[:-1] ** 2)
    return dict(zip(WRONG, (both * q.sigma[:-1] ** 2, both * q.reverse().x0 ** 2, both, both / d), strict=True))


def sigmas(lams: Array, schedule: Schedule, seed: int) -> dict[str, Array]:
    """The σ that are tried: σ(η) of Eq. 16, but for σ_1, which is 0 there and here η σ̂_1; and random shares of the largest."""
    tilde, most = noise_of_eta(lams, schedule, 1.0)[:-1], largest(lams, schedule)[:-1]
    first = noise_hat(lams, schedule)[-1]
    share = np.random.default_rng(seed).uniform(0.5, 1, len(lams) - 1)
    return {"η = 1": np.append(tilde, first), "η = 0.5": 0.5 * np.append(tilde, first), "random": share * np.append(most, first)}


def trajectory(q: Family, x0: Tensor, noise: Noise) -> list[Tensor]:
    """x_T, ..., x_1 of q(·|x0), by Eqs. 6 and 7, each of the shape of x0; draws 0 to T − 1."""
    step = q.reverse()
    states = [q.alpha[0] * x0 + q.sigma[0] * noise(0, x0)]
    for i in range(len(q.noise) - 1):
        states.append(step.x[i] * states[-1] + step.x0[i] * x0 + step.std[i] * noise(i + 1, x0))
    return states


def log_normal(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """log N(x; mean, std² I), (batch,), of x (batch, *image)."""
    d = x[0].numel()
    return -(x - mean).flatten(1).square().sum(1) / (2 * std**2) - d * np.log(std * np.sqrt(2 * np.pi))


def log_ratio(q: Family, x0: Tensor, states: list[Tensor], eps: list[Tensor]) -> Tensor:
    """log q(x_1, ..., x_T | x0) − log p_θ(x_0, ..., x_T), (batch,), by Eqs. 6, 7, 9 and 10 with p(x_T) = N(0, I)."""
    step, last = q.reverse(), len(states) - 1
    total = log_normal(states[0], q.alpha[0] * x0, q.sigma[0]) - log_normal(states[0], torch.zeros_like(x0), 1.0)
    for i, (x, after) in enumerate(pairwise([*states, x0])):
        predicted = (x - q.sigma[i] * eps[i]) / q.alpha[i]  # f_θ(x), Eq. 9
        total -= log_normal(after, step.x[i] * x + step.x0[i] * predicted, step.std[i])
        if i < last:
            total += log_normal(after, step.x[i] * x + step.x0[i] * x0, step.std[i])
    return total


def constant(q: Family, x0: Tensor) -> Tensor:
    """C of each image, (batch,): KL(N(α_T x0, σ_T² I) ‖ N(0, I)) + (d/2) log(2π n_1²)."""
    d, alpha, sigma = x0[0].numel(), q.alpha[0], q.sigma[0]
    divergence = 0.5 * (d * (sigma**2 - 1 - 2 * np.log(sigma)) + alpha**2 * x0.flatten(1).square().sum(1))
    return divergence + 0.5 * d * np.log(2 * np.pi * q.noise[-1] ** 2)


def measure(model: Theorem1Model, q: Family, name: str, seed: int) -> Row:
    """The row of one ε_θ: J, C, L and J − L − C with γ and with the wrong weights; means over the images and standard errors."""
    parts = zip(*(_batch(model, q, name, seed, first) for first in range(0, len(model.x0), BATCH)), strict=True)
    j, c, paired, apart = (torch.cat(part).cpu().numpy() for part in parts)
    gamma, d = q.gamma(), model.x0[0].numel()
    columns = {"J": j, "C": c, "L paired": paired @ gamma, "paired": j - c - paired @ gamma}
    columns |= {"L apart": apart @ gamma, "apart": j - c - apart @ gamma}
    columns |= {name: j - c - paired @ weight for name, weight in wrong_weights(q, d).items()}
    row: Row = {"d": d}
    for key, values in columns.items():
        row |= {key: values.mean(), f"{key} se": values.std(ddof=1) / np.sqrt(len(values))}
    return row


def _batch(model: Theorem1Model, q: Family, name: str, seed: int, first: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """J and C of the images from `first` on, (batch,), and their ‖ε_θ − ε‖² paired and apart, (batch, states)."""
    x0, y = (whole[first : first + BATCH].to(model.model.device) for whole in (model.x0, model.y))
    noise, eps = SeededNoise(range(seed + first, seed + first + len(x0))), VARIANTS[name](model.model, y)
    marginals = list(zip(q.alpha[:-1], q.sigma[:-1], strict=True))
    states, fresh = trajectory(q, x0, noise), [noise(len(marginals) + i, x0) for i in range(len(marginals))]
    true = [(x - alpha * x0) / sigma for x, (alpha, sigma) in zip(states, marginals, strict=True)]
    independent = [alpha * x0 + sigma * z for z, (alpha, sigma) in zip(fresh, marginals, strict=True)]
    paired, apart = (evaluated(eps, q, at, model.dtype) for at in (states, independent))
    return log_ratio(q, x0, states, paired), constant(q, x0), squares(paired, true), squares(apart, fresh)


def evaluated(eps: Eps, q: Family, states: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """ε_θ at each of the states x_T, ..., x_1, in float64 though evaluated in dtype."""
    return [eps(x.to(dtype), lam).double() for x, lam in zip(states, q.grid[:-1].tolist(), strict=True)]


def squares(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """‖a − b‖² of each image at each state, (batch, states)."""
    return torch.stack([(x - y).flatten(1).square().sum(1) for x, y in zip(a, b, strict=True)], 1)


def report(out: Path) -> str:
    """The rows of OUT.json as Markdown: J, L and C for each ε_θ and σ; and, for η = 1, J − L − C with the wrong weights."""
    about, rows = results.read(out)
    rows = [row for row in rows if "error" not in row]
    off = {key: max(abs(row[key]) / row[f"{key} se"] for row in rows) for key in ("paired", "apart")}
    sizes = dict.fromkeys(f"{row['model']}: {row['n']} images of d = {row['d']}, S = {row['steps']}" for row in rows)
    files = ", ".join(f"`{name}` (SHA-256 {sha256[:12]})" for name, sha256 in about["sha256"].items())
    runs = "; ".join(run_sentence(each) for each in about["made"])
    return f"""{_sides(rows)}

Nats per image, ± one standard error. In all {len(rows)} rows J − L − C is within {off["paired"]:.1f} standard errors of 0, and
with L at independent states within {off["apart"]:.1f}. With other weights it is not even a constant (η = 1):

{_with_wrong_weights([row for row in rows if row["sigma"] == "η = 1"])}

τ is {about["tau"]} and the step to α = 1; {"; ".join(sizes)}; seed {about["seed"]}; {files}. Made by {runs}."""


def _sides(rows: Sequence[Row]) -> str:
    """Both sides of the equation, and their difference."""
    head = ["model", "σ", "ε_θ", "J", "C", "L at the same states", "J − L − C", "L at independent states", "J − L − C"]
    columns = ("L paired", "paired", "L apart", "apart")
    lines = [
        [row["model"], row["sigma"], row["eps"], _with_error(row, "J"), f"{row['C']:.1f}"]
        + [_with_error(row, key) for key in columns]
        for row in rows
    ]
    return table(head, lines)


def _with_wrong_weights(rows: Sequence[Row]) -> str:
    """J − L − C with γ and with each of the wrong weights."""
    head = ["model", "ε_θ", "γ = c²(1 − α)/(2σ²α)", *WRONG.values()]
    first = [[row["model"], row["eps"], _with_error(row, "paired")] for row in rows]
    return table(head, [[*line, *(_with_error(row, key, 0) for key in WRONG)] for line, row in zip(first, rows, strict=True)])


def _with_error(row: Row, key: str, digits: int = 1) -> str:
    return f"{row[key]:.{digits}f} ± {row[f'{key} se']:.{digits}f}"


@click.command(cls=Script)
@click.option("--model", "names", multiple=True, type=click.Choice(list(MODELS)), help="May be given again. [default: both]")
@click.option("--n", type=click.IntRange(2, MOST_IMAGES), help="Images. [default: 10000 of the mixture, 1000 real ones]")
@click.option("--steps", default=10, show_default=True, type=click.IntRange(2), help="S, the labels of τ.")
@script_options.seed("Of the noise, and of the random σ.")
@script_options.out("results/theorem1", "OUT.csv and OUT.json: a name without suffix.")
@script_options.overwrite
@script_options.fast("few images")
def main(names: tuple[str, ...], n: int | None, steps: int, seed: int, out: Path, overwrite: bool, fast: bool) -> None:
    """J_σ and L_γ for several ε_θ and σ, on an exact mixture and on the shipped network."""
    names, sizes = names or tuple(MODELS), N_FAST if fast else N
    models = {name: MODELS[name](n or sizes[name], seed) for name in names}
    families: dict[tuple[str, str], Family] = {}
    cells = []
    for name, each in models.items():
        schedule = each.model.schedule
        lams = grid.make(TAU, schedule, steps, denoise=True)
        for sigma, noise in sigmas(lams, schedule, seed).items():
            families[name, sigma] = Family(lams, schedule, noise)
            on = {"model": name, "n": n or sizes[name], "steps": steps, "sigma": sigma}
            cells += [{**on, "eps": eps} for eps in each.variants]

    def compute(cell: Mapping[str, Any]) -> Row:
        return measure(models[cell["model"]], families[cell["model"], cell["sigma"]], cell["eps"], seed)

    about = {"tau": TAU, "seed": seed, "sha256": {name: pretrained.load(name).sha256 for name in names}}
    command = command_line()
    rows = results.fill(out, cells, compute, about=about, command=command, overwrite=overwrite)
    for row in rows:
        if "error" not in row:
            say(f"{row['model']}, {row['sigma']}, ε_θ {row['eps']}: J − L − C = {_with_error(row, 'paired', 2)}")
    results.finish(rows, out)


if __name__ == "__main__":
    main()
