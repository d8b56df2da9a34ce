"""Theorem 1 of the DDIM paper (Lemma 2 of Ma's slides on it, 2023), both sides computed: python -m experiments.ddim_paper.theorem1

    J_σ = E[log q_σ(x_1, ..., x_T | x0) − log p_θ(x_0, ..., x_T)]                           Eq. 11
    L_γ = Σ_t γ_t E‖ε_θ(x_t) − ε_t‖²,    x_t = α_t x0 + σ_t ε_t                             Eq. 5
    C   = E KL(q(x_T | x0) ‖ N(0, I)) + (d/2) log(2π n_1²)

say J_σ = L_γ + C for every ε_θ, with the γ of diffode/ddim_family.py, ‖·‖² a sum over d pixels and n_1 the paper's σ_1. J is taken as
it is written: trajectories are drawn from q_σ by Eq. 7, and the logarithms of their densities under q_σ and p_θ are subtracted;
no divergence is expanded. L is taken twice: at the states of the same trajectories, where ε_t = (x_t − α_t x0)/σ_t ("paired",
which leaves little Monte Carlo error), and at states of its own, drawn by Eq. 4 ("apart"). q(x0) is the uniform distribution on
n images, so C is exact. The noise of an image is the same for every ε_θ. All is in nats an image.

Beside γ stand the weights of the slides' (17), after the paper's appendix B, and what lacks one of the two factors lost there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from diffode import grid
from diffode.ddim_family import Family, largest, noise_hat, noise_of_eta
from diffode.mixture import Mixture
from diffode.model import EpsModel
from diffode.models import pretrained
from diffode.noise import Noise, SeededNoise
from diffode.schedule import Array, Schedule
from experiments.common import results
from experiments.common.commands import Script, command_line
from experiments.common.examples import real_images
from experiments.common.markdown import run_sentence, table

Eps = Callable[[Tensor, float], Tensor]
TAU = "tau-quadratic"
BATCH = 128
POOLED = 4  # the mixture is of images averaged over 4 × 4 pixels

VARIANTS: dict[str, Callable[[EpsModel, Tensor], Eps]] = {  # (model, labels of the batch) -> ε_θ
    "its own": lambda model, y: model.labelled(y),
    "0.9 of it": lambda model, y: lambda x, lam: 0.9 * model.labelled(y)(x, lam),
    "of twice the variance": lambda model, y: warmed(model).labelled(y),
    "without labels": lambda model, y: model,
    "guided by 2": lambda model, y: model.labelled(y).guided(2.0),
    "zero": lambda model, y: lambda x, lam: torch.zeros_like(x),
}
NETWORKS = ("its own", "without labels", "guided by 2", "zero")

WRONG = {  # name -> formula, in the paper's symbols; γ is c² (1 − α)/(2σ²α)
    "without c": "(1 − α)/(2σ²α)",
    "without 1 - alpha": "c²/(2σ²α)",
    "without both": "1/(2σ²α)",
    "slides": "1/(2dσ²α)",
}


def wrong_weights(q: Family, d: int) -> dict[str, Array]:
    """The weights of WRONG, one a step."""
    both = 1 / (2 * q.noise**2 * q.alpha[:-1] ** 2)
    return dict(zip(WRONG, (both * q.sigma[:-1] ** 2, both * q.reverse().x0 ** 2, both, both / d), strict=True))


def sigmas(lams: Array, schedule: Schedule, seed: int) -> dict[str, Array]:
    """The σ that are tried: σ(η) of Eq. 16, but for σ_1, which is 0 there and here η σ̂_1; and random shares of the largest."""
    tilde, most = noise_of_eta(lams, schedule, 1.0)[:-1], largest(lams, schedule)[:-1]
    first = noise_hat(lams, schedule)[-1]
    share = np.random.default_rng(seed).uniform(0.5, 1, len(lams) - 1)
    return {"η = 1": np.append(tilde, first), "η = 0.5": 0.5 * np.append(tilde, first), "random": share * np.append(most, first)}


@dataclass(frozen=True)
class Subject:
    """A model, data x0 (n, *image) in float64 and labels y, the dtype that the model is evaluated in, and names in VARIANTS."""

    model: EpsModel
    x0: Tensor
    y: Tensor
    dtype: torch.dtype
    variants: tuple[str, ...]


def mixture(n: int, seed: int) -> Subject:
    """The exact ε of a mixture, on samples of it, its classes in turn."""
    model = pretrained.load("mixture", torch.float64).model
    assert isinstance(model.network, Mixture)
    small, classes = model.network.pooled(POOLED), model.classes
    each = [small.sample(-(-n // classes), seed + label, label) for label in range(classes)]
    variants = tuple(name for name in VARIANTS if name != "guided by 2")
    x0, y = torch.stack(each, 1).flatten(0, 1)[:n], torch.arange(n) % classes
    return Subject(_with(model, small), x0, y, torch.float64, variants)


def fashion(n: int, seed: int) -> Subject:
    """The shipped network, on real test images."""
    x0, y = real_images(n)
    return Subject(pretrained.load("fashion").model, x0.double(), y, torch.float32, NETWORKS)


SUBJECTS: dict[str, Callable[[int, int], Subject]] = {"mixture": mixture, "fashion": fashion}
N = {"mixture": 10_000, "fashion": 1_000}
N_FAST = {"mixture": 128, "fashion": 10}


def warmed(model: EpsModel) -> EpsModel:
    """The exact ε of another distribution: of the mixture with all covariances doubled."""
    old = model.network
    assert isinstance(old, Mixture)
    tensors = {"log_pi": old.log_pi, "mean": old.mean, "along": 2 * old.along, "floor": 2 * old.floor, "label": old.label}
    tensors["basis"] = rearrange(old.basis, "pixels (k rank) -> k pixels rank", k=len(old.mean))
    return _with(model, Mixture(tensors, old.image, old.path, old.mean.dtype, old.rows))


def _with(model: EpsModel, network: Mixture) -> EpsModel:
    return EpsModel(network, model.schedule, model.predicts, clock=model.clock, classes=model.classes)


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


def measure(subject: Subject, q: Family, name: str, seed: int) -> results.Row:
    """The row of one ε_θ: J, C, L and J − L − C with γ and with the wrong weights; means over the images and standard errors."""
    parts = []
    for first in range(0, len(subject.x0), BATCH):
        x0, y = (whole[first : first + BATCH].to(subject.model.device) for whole in (subject.x0, subject.y))
        noise, eps = SeededNoise(range(seed + first, seed + first + len(x0))), VARIANTS[name](subject.model, y)
        ends = list(zip(q.alpha[:-1], q.sigma[:-1], strict=True))
        states, own = trajectory(q, x0, noise), [noise(len(ends) + i, x0) for i in range(len(ends))]
        true = [(x - alpha * x0) / sigma for x, (alpha, sigma) in zip(states, ends, strict=True)]
        fresh = [alpha * x0 + sigma * z for z, (alpha, sigma) in zip(own, ends, strict=True)]
        made, again = (predicted(eps, q, at, subject.dtype) for at in (states, fresh))
        parts.append((log_ratio(q, x0, states, made), constant(q, x0), squares(made, true), squares(again, own)))
    j, c, at_same, at_own = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    gamma, d = q.gamma(), subject.x0[0].numel()
    found = {"J": j, "C": c, "L paired": at_same @ gamma, "paired": j - c - at_same @ gamma}
    found |= {"L apart": at_own @ gamma, "apart": j - c - at_own @ gamma}
    found |= {name: j - c - at_same @ weight for name, weight in wrong_weights(q, d).items()}
    row = {"d": d}
    for key, each in found.items():
        row |= {key: each.mean(), f"{key} se": each.std(ddof=1) / np.sqrt(len(each))}
    return row


def predicted(eps: Eps, q: Family, states: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """ε_θ at each of the states x_T, ..., x_1, in float64 though evaluated in dtype."""
    return [eps(x.to(dtype), lam).double() for x, lam in zip(states, q.grid[:-1].tolist(), strict=True)]


def squares(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """‖a − b‖² of each image at each state, (batch, states)."""
    return torch.stack([(x - y).flatten(1).square().sum(1) for x, y in zip(a, b, strict=True)], 1)


def report(out: Path) -> str:
    """The rows of OUT.json as Markdown: J, L and C for each ε_θ and σ; and, for η = 1, J − L − C with the wrong weights."""
    about, found = results.read(out)
    found = [row for row in found if "error" not in row]

    def pm(row: Mapping[str, Any], key: str, digits: int = 1) -> str:
        return f"{row[key]:.{digits}f} ± {row[f'{key} se']:.{digits}f}"

    head = ["model", "σ", "ε_θ", "J", "C", "L at the same states", "J − L − C", "L at its own", "J − L − C"]
    both = [
        [row["model"], row["sigma"], row["eps"], pm(row, "J"), f"{row['C']:.1f}"]
        + [pm(row, key) for key in ("L paired", "paired", "L apart", "apart")]
        for row in found
    ]
    wrong = [
        [row["model"], row["eps"], pm(row, "paired"), *(pm(row, key, 0) for key in WRONG)]
        for row in found
        if row["sigma"] == "η = 1"
    ]
    off = {key: max(abs(row[key]) / row[f"{key} se"] for row in found) for key in ("paired", "apart")}
    sizes = dict.fromkeys(f"{row['model']}: {row['n']} images of d = {row['d']}, S = {row['steps']}" for row in found)
    files = ", ".join(f"`{name}` (SHA-256 {sha256[:12]})" for name, sha256 in about["sha256"].items())
    made = "; ".join(run_sentence(each) for each in about["made"])
    return f"""{table(head, both)}

Nats an image, ± one standard error. In all {len(found)} rows J − L − C is within {off["paired"]:.1f} standard errors of 0, and
with L at states of its own within {off["apart"]:.1f}. With other weights it is not even a constant (η = 1):

{table(["model", "ε_θ", "γ = c²(1 − α)/(2σ²α)", *WRONG.values()], wrong)}

τ is {about["tau"]} and the step to α = 1; {"; ".join(sizes)}; seed {about["seed"]}; {files}. Made by {made}."""


@click.command(cls=Script)
@click.option("--model", multiple=True, type=click.Choice(list(SUBJECTS)), help="Repeatable. [default: both]")
@click.option("--n", type=click.IntRange(2), help="Images. [default: 10000 of the mixture, 1000 real ones]")
@click.option("--steps", default=10, show_default=True, type=click.IntRange(2), help="S, the labels of τ.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the noise, and of the random σ.")
@click.option("--out", default="results/theorem1", show_default=True, type=click.Path(path_type=Path), help="Without suffix.")
@click.option("--overwrite", is_flag=True, help="Compute all rows again.")
@click.option("--fast", is_flag=True, help="Only to see that it holds: few images.")
def main(**o: Any) -> None:
    """J_σ and L_γ for several ε_θ and σ, on an exact mixture and on the shipped network."""
    models, cells = o["model"] or tuple(SUBJECTS), []
    subjects, families = {}, {}
    for name in models:
        n = o["n"] or (N_FAST if o["fast"] else N)[name]
        subject = subjects[name] = SUBJECTS[name](n, o["seed"])
        lams = grid.make(TAU, subject.model.schedule, o["steps"], denoise=True)
        for sigma, noise in sigmas(lams, subject.model.schedule, o["seed"]).items():
            families[name, sigma] = Family(lams, subject.model.schedule, noise)
            cells += [{"model": name, "n": n, "steps": o["steps"], "sigma": sigma, "eps": eps} for eps in subject.variants]

    def compute(cell: Mapping[str, Any]) -> results.Row:
        return measure(subjects[cell["model"]], families[cell["model"], cell["sigma"]], cell["eps"], o["seed"])

    about = {"tau": TAU, "seed": o["seed"], "sha256": {name: pretrained.load(name).sha256 for name in models}}
    made = results.fill(o["out"], cells, compute, about=about, command=command_line(), overwrite=o["overwrite"])
    for row in made:
        if "error" not in row:
            click.echo(
                f"{row['model']}, {row['sigma']}, ε_θ {row['eps']}: J − L − C = {row['paired']:.2f} ± {row['paired se']:.2f}"
            )
    results.finish(made, o["out"])


if __name__ == "__main__":
    main()
