"""The options of commands that sample, in the groups of their help; each group is handed to the command as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import cloup

from experiments.common.options import (
    COUNT,
    MOST_IMAGES,
    FileName,
    GridSpec,
    Interval,
    NameValue,
    Numbers,
    as_one,
    path,
    together,
)
from experiments.sampling import source_options

if TYPE_CHECKING:  # --help does not wait for torch
    from experiments.sampling.recipe import Recipe
    from solvers import Budget

SOLVER_OPTIONS: dict[str, tuple[Any, str]] = {
    "eta": (float, "ddim and stochastic solvers: 0 is the ODE, 1 is DDPM or the SDE."),
    "r1": (float, "Single steps (dpm2, dpm3, ...): the first intermediate point. [default: 1/2, 1/3]"),
    "r2": (float, "Single steps of order 3: the second intermediate point. [default: 2/3]"),
    "variance": (click.Choice(["small", "large"]), "ddpm: σ² = β̃ (small) or σ² = β (large)."),
    "variable": (click.Choice(["lam", "sigma_bar", "t"]), "torchdiffeq, rk:NAME (not t): what to integrate in."),
    "rtol": (float, "Adaptive solvers: relative tolerance. [default: 0.005; torchdiffeq 1e-5]"),
    "atol": (float, "Adaptive solvers: absolute tolerance, in units of x. [default: the same]"),
    "max_nfe": (click.IntRange(1), "Adaptive solvers: at most so many evaluations per image. [default: 100000]"),
}
PLANNED = ("eta", "r1", "r2", "variance", "variable")  # options of solvers that have a plan
BUDGET = ("nfe", "steps", "grid", "denoise")  # options of a whole grid
RECIPE = ("guidance", "guidance_interval", "guidance_rescale", "clip", "threshold", "dtype", "device")
TypedOptions = list[tuple[str, Any]]
DTYPE_NAMES = ["float32", "float64", "bfloat16", "float16"]

label = cloup.option("--label", help="Labels, numbers or names, comma-separated, in turn; or none. [default: all in turn]")
device = cloup.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps")
denoise = cloup.option("--denoise/--no-denoise", default=False, help="End with a step to σ = 0, which is one of the steps.")


@dataclass(frozen=True)
class Images:
    """Which images are drawn: a seed each; labels, the file to begin with, and the kind of noise, as they were typed."""

    seeds: list[int]
    label: str | None
    init: str | None
    noise: str


def images(n: int | None, seeds: list[int] | None, label: str | None, init: str | None, noise: str) -> Images:
    """Images of the options; click.UsageError for too many, and for two numbers of them."""
    if (n or 0) > MOST_IMAGES:
        raise click.UsageError(f"--n {n} is more than the {MOST_IMAGES} images that one command takes")
    if n and seeds and n != len(seeds):
        raise click.UsageError(f"--n {n} and --seeds ({len(seeds)} of them) disagree: leave one out")
    return Images(seeds or list(range(n or 64)), label, init, noise)


def recipe(device: str, **typed: Any) -> Recipe:
    """The Recipe of the options, which are its fields; InputError for what is not to be had."""
    from experiments.sampling.recipe import Recipe, choose_device

    return Recipe(**typed, device=choose_device(device))


def budget(**typed: Any) -> Budget:
    """The Budget of the options, which are its fields."""
    from solvers import Budget

    return Budget(**typed)


def typed_options(option: TypedOptions, per_sample: bool = False, **named: tuple[Any, ...]) -> TypedOptions:
    """The options of the solver that were typed, (name, value), whichever way."""
    pairs = [(name, value) for name, values in named.items() for value in values]
    return [*pairs, *([("per_sample", True)] if per_sample else []), *option]


def solver_options(*names: str) -> tuple[Any, ...]:
    """Options of solvers under names of their own, and --option for all others."""
    return (
        *(
            cloup.option(f"--{name.replace('_', '-')}", type=SOLVER_OPTIONS[name][0], multiple=True, help=SOLVER_OPTIONS[name][1])
            for name in names
        ),
        cloup.option(
            "-o", "--option", type=NameValue(), multiple=True, help="Any option of the solver, as start=single. Repeatable."
        ),
    )


budget_options = (
    cloup.option("--nfe", type=int, help="Exactly so many network evaluations per image. [default: about 50; plan: 10 steps]"),
    cloup.option("--steps", type=click.IntRange(1), help="Steps, whatever they cost."),
    cloup.option(
        "--grid",
        type=GridSpec(),
        help="logsnr, time, quadratic, karras; with --denoise the DDIM paper's tau-linear, tau-quadratic; λ as -5,-2,0,2,4.6; "
        "or a .json file as experiments.comparison.optimal_grid writes them. [default: logsnr]",
    ),
    denoise,
)
batch = cloup.option(
    "--batch",
    type=COUNT,
    default=64,
    show_default=True,
    help="Images at a time. By the network's rounding, one pixel in 10,000 or fewer is another level, by 1, with another number.",
)
images_group = together(
    cloup.option_group(
        "What is drawn",
        source_options.model,
        cloup.option("--n", type=click.IntRange(1), help="How many images, seeds 0 to N − 1. [default: 64]"),
        cloup.option(
            "--seeds",
            type=Numbers(),
            help="The seeds instead: 7 or 1,2,5 or 0-49999. An image depends on its seed, not on its batch (see --batch).",
        ),
        label,
        cloup.option(
            "--init",
            type=FileName(str),
            metavar="FILE",
            help="Begin with these images, noised (--strength or --from-lam): a file, a folder or an .npz; in turn, by seed.",
        ),
        cloup.option(
            "--strength", type=float, help="Run the last steps only, as 0.6 of them; the lower, the more of --init is kept."
        ),
        cloup.option("--from-lam", type=float, metavar="λ", help="Begin at this λ; --nfe and --steps are of the rest."),
        cloup.option(
            "--noise",
            type=click.Choice(["seeded", "brownian"]),
            default="seeded",
            show_default=True,
            help="brownian: stochastic solvers draw from one path per seed, so more steps converge to the same image.",
        ),
    ),
    source_options.pipeline_group,
    as_one("images", images),
)
solver_group = together(
    cloup.option_group(
        "The solver and its budget",
        cloup.option(
            "--solver",
            default="ddim",
            show_default=True,
            metavar="NAME|FILE",
            help="A name that `solvers` lists (NAME+unic), a plan's .json file, or MODULE:NAME.",
        ),
        *budget_options,
        *solver_options(*SOLVER_OPTIONS),
        cloup.option("--per-sample", is_flag=True, help="torchdiffeq: each image alone, so that none depends on its batch."),
    ),
    as_one("budget", budget, [*BUDGET, "strength", "from_lam"]),
    as_one("typed_options", typed_options, [*SOLVER_OPTIONS, "option", "per_sample"]),
)
planning_group = together(
    cloup.option_group(
        "The schedule and the budget",
        cloup.option(
            "--schedule",
            help="A name in diffode.schedules: ddpm_linear, scaled_linear, vp_linear, cosine, edm, flow. [default: ddpm_linear]",
        ),
        *budget_options,
        *solver_options(*PLANNED),
    ),
    as_one("budget", budget, BUDGET),
    as_one("typed_options", typed_options, [*PLANNED, "option"]),
)


def recipe_group(*others: Any) -> Any:
    """How the model is run, as `recipe`; and other options in that group of the help."""
    return together(
        cloup.option_group(
            "How the model is run",
            cloup.option(
                "--guidance", type=float, help="Weight of classifier-free guidance. [default: 1, without; the pipeline's own]"
            ),
            cloup.option(
                "--guidance-interval", type=Interval(), help="Guide where LO ≤ λ < HI only (λ = −log σ̄), by one call elsewhere."
            ),
            cloup.option(
                "--guidance-rescale",
                type=float,
                default=0.0,
                metavar="PHI",
                help="Rescale what is guided, as 0.7 (Lin et al., 2024).",
            ),
            cloup.option("--clip", is_flag=True, help="Clip x̂0 to [−1, 1] at every evaluation."),
            cloup.option("--threshold", type=float, metavar="QUANTILE", help="Dynamic thresholding of x̂0, as 0.995."),
            cloup.option("--dtype", type=click.Choice(DTYPE_NAMES), default="float32", show_default=True),
            device,
            *others,
        ),
        source_options.as_source,
        as_one("recipe", recipe, RECIPE),
    )


overwrite = cloup.option("--overwrite", is_flag=True, help="Replace a file that exists.")
output_group = cloup.option_group(
    "Where it goes",
    path(
        "--out",
        help="x.png (a grid), x.npz, or a folder (a PNG per seed); of floats x.npz, x.safetensors, or x.png (a "
        "drawing). [default: samples/ and what was typed]",
    ),
    cloup.option("--floats", is_flag=True, help="Write x itself, float32, not clipped; so is what is no image without it."),
    cloup.option("--trajectory", is_flag=True, help="Keep the states, too, in OUT-trajectory.npz and .png. One batch only."),
    path("--save-plan", metavar="FILE.json", help="Keep the plan that was run; of an adaptive solver, with one image."),
    overwrite,
)
plan_output_group = cloup.option_group(
    "Where it goes",
    path(
        "--save", metavar="FILE.json", help="Write it, to be sampled with, sample --solver FILE.json, or shown, plan FILE.json."
    ),
    path("--png", metavar="FILE.png", help="Draw it as a heat map (takes matplotlib)."),
    overwrite,
)
