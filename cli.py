"""The command line: `python cli.py sample --solver ddim`. It parses and calls; what it calls is imported when it is needed,
so that --help does not wait for torch."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from pathlib import Path
from typing import Any

import click

from experiments.common.commands import Script, cli_errors, command_line

__version__ = "0.1.0"
MOST_IMAGES = 10_000_000
BAR = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} < {remaining}{postfix}"


class Commands(click.Group):
    """Reports bad input, and what the disk refuses, in one sentence with exit code 2; Ctrl-C with 130."""

    command_class = Script

    def invoke(self, ctx: click.Context) -> Any:
        with cli_errors(ctx):
            return super().invoke(ctx)


class Numbers(click.ParamType):
    """Comma-separated whole numbers and ranges: 7 or 1,2,5 or 0-49999."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        match = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in str(value).split(",")]
        ranges = [range(int(m[1]), int(m[2] or m[1]) + 1) for m in match if m]
        count = sum(len(part) if part else 1 for part in ranges)
        if len(ranges) < len(match) or not all(ranges):
            self.fail(f"{value!r} is not a list of whole numbers and ranges, as 7 or 1,2,5 or 0-49999", param, ctx)
        if count > MOST_IMAGES:
            self.fail(f"{value!r} is {count} numbers, more than the {MOST_IMAGES} that one command takes", param, ctx)
        numbers = [number for part in ranges for number in part]
        if len(set(numbers)) < count:
            self.fail(f"{value!r} is not a list of different whole numbers: it names one twice", param, ctx)
        return numbers


class GridSpec(click.ParamType):
    """A grid's name, the .json file of one, or its values of λ, comma-separated, noisy to clean."""

    name = "name|list|file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value.endswith(".json"):
            from diffode import grid

            return grid.load(value)
        try:
            return [float(part) for part in value.split(",")] if not value[0].isalpha() else value
        except (ValueError, IndexError):
            self.fail(f"{value!r} is neither the name of a grid nor a comma-separated list of λ, as -5,-2,0,2,4.6", param, ctx)


class Setting(click.ParamType):
    """NAME=VALUE, an option of a solver."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, equals, text = value.partition("=")
        if not (name.strip() and equals and text.strip()):
            self.fail(f"{value!r} is not NAME=VALUE, as eta=0.5; `solvers` lists the options of each solver", param, ctx)
        return name.strip().replace("-", "_"), text.strip()


SETTINGS = {
    "eta": (float, "ddim and stochastic solvers: 0 is the ODE, 1 is DDPM or the SDE."),
    "r1": (float, "Single steps (dpm2, dpm3, ...): the first intermediate point. [default: 1/2, 1/3]"),
    "r2": (float, "Single steps of order 3: the second intermediate point. [default: 2/3]"),
    "variance": (click.Choice(["small", "large"]), "ddpm: σ² = β̃ (small) or σ² = β (large)."),
    "variable": (click.Choice(["lam", "sigma_bar", "t"]), "torchdiffeq, rk:NAME (not t): what to integrate in."),
    "rtol": (float, "Adaptive solvers: relative tolerance. [default: 0.005; torchdiffeq 1e-5]"),
    "atol": (float, "Adaptive solvers: absolute tolerance, in units of x. [default: the same]"),
    "max_nfe": (click.IntRange(1), "Adaptive solvers: at most so many evaluations an image. [default: 100000]"),
}


def settings(*names: str) -> Any:
    """Options of solvers under names of their own, and --option for all others."""
    return together(
        *(
            click.option(f"--{name.replace('_', '-')}", type=SETTINGS[name][0], multiple=True, help=SETTINGS[name][1])
            for name in names
        ),
        click.option(
            "-o", "--option", type=Setting(), multiple=True, help="Any option of the solver, as start=single. Repeatable."
        ),
    )


def together(*options: Any) -> Any:
    """Several options as one decorator."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


budget = together(
    click.option("--nfe", type=int, help="Exactly so many network evaluations an image. [default: about 50; plan: 10 steps]"),
    click.option("--steps", type=click.IntRange(1), help="Steps, whatever they cost."),
    click.option(
        "--grid",
        type=GridSpec(),
        help="logsnr, time, quadratic, karras; with --denoise the DDIM paper's tau-linear, tau-quadratic; λ as -5,-2,0,2,4.6; "
        "or a .json file as experiments.comparison.optimal_grid writes them. [default: logsnr]",
    ),
    click.option("--denoise/--no-denoise", default=False, help="End with a step to σ = 0, which is one of the steps."),
)
guided = click.option(
    "--guidance", type=float, default=1.0, show_default=True, help="Weight of classifier-free guidance; 1 is without."
)
on_device = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps")
in_dtype = click.option(
    "--dtype", type=click.Choice(["float32", "float64", "bfloat16", "float16"]), default="float32", show_default=True
)
path = partial(click.option, type=click.Path(path_type=Path))


def default_name(ctx: click.Context) -> str:
    """MODEL-SOLVER, and all else that was typed and decides the images, so that two commands do not meet in one file; where the
    name cannot hold all of it, a digest at the end does."""
    silent = ("model", "solver", "out", "overwrite", "batch", "device", "save_plan", "trajectory")

    def text(value: Any, brief: bool) -> str:
        if not isinstance(value, list | tuple):
            return str(value)
        if isinstance(value, list) and (brief or value == list(range(int(value[0]), int(value[0]) + len(value)))):
            return f"{value[0]}..{value[-1]}-{len(value)}"
        return ",".join("=".join(part) if isinstance(part, tuple) else str(part) for part in value)

    typed = {
        name: ctx.params[name]
        for name in (parameter.name or "" for parameter in ctx.command.params)
        if name not in silent and ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    model, solver = str(ctx.params["model"]), ctx.params["solver"].replace(":", "-")
    short, exact = (
        "-".join(word for name, value in typed.items() for word in ([name] if value is True else [name, text(value, brief)]))
        for brief in (True, False)
    )
    name = re.sub(r"[^\w.,+=-]", "_", "-".join(filter(None, [Path(model).stem, solver, short])))[:120]
    whole = "-".join(filter(None, [model, solver, exact]))
    return name if name == whole else f"{name[:111]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def given(ctx: click.Context) -> list[tuple[str, Any]]:
    """The options of the solver that were typed, (name, value), in whatever way."""
    named = [(name, value) for name in SETTINGS for value in ctx.params.get(name, ())]
    return [*named, *([("per_sample", True)] if ctx.params.get("per_sample") else []), *ctx.params["option"]]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="diffode")
def main() -> None:
    """Sample diffusion models by integrating their probability-flow ODE in log-SNR time."""


@main.command()
@click.option(
    "--solver",
    default="ddim",
    show_default=True,
    metavar="NAME|FILE",
    help="A name that `solvers` lists (NAME+unic), a plan's .json file, or MODULE:NAME.",
)
@budget
@settings(*SETTINGS)
@click.option("--per-sample", is_flag=True, help="torchdiffeq: each image alone, so that none depends on its batch.")
@click.option("--n", type=click.IntRange(1), help="How many images, seeds 0 to N − 1. [default: 64]")
@click.option(
    "--seeds", type=Numbers(), help="The seeds instead: 7 or 1,2,5 or 0-49999. An image depends on its seed, not on its batch."
)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images at a time.")
@click.option("--label", help="Labels, numbers or names, comma-separated, in turn; or none. [default: all in turn]")
@guided
@click.option("--clip", is_flag=True, help="Clip x̂0 to [−1, 1] at every evaluation.")
@click.option("--threshold", type=float, metavar="QUANTILE", help="Dynamic thresholding of x̂0, as 0.995.")
@click.option(
    "--model",
    default="fashion",
    show_default=True,
    metavar="NAME|FILE",
    help="fashion, mixture, a checkpoint file, PRESET:FILE, a folder of diffusers, hub:NAME, or MODULE:NAME (docs/networks.md).",
)
@path("--out", help="x.png (a grid), x.npz, or a folder (a PNG a seed). [default: samples/ and what was typed]")
@click.option("--trajectory", is_flag=True, help="Keep the states, too, in OUT-trajectory.npz and .png. One batch only.")
@path("--save-plan", metavar="FILE.json", help="Keep the plan that was run; of an adaptive solver, with one image.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@on_device
@in_dtype
@click.pass_context
def sample(ctx: click.Context, **o: Any) -> None:
    """Draw images.

    Interrupted, the same command goes on where it was; FILE.json beside the output says how to make it again.
    """
    from tqdm import tqdm

    from diffode.models import pretrained
    from experiments.sampling import generate, jobs
    from experiments.sampling.recipe import Recipe, choose_device

    if (o["n"] or 0) > MOST_IMAGES:
        raise click.UsageError(f"--n {o['n']} is more than the {MOST_IMAGES} images that one command takes")
    if o["n"] and o["seeds"] and o["n"] != len(o["seeds"]):
        raise click.UsageError(f"--n {o['n']} and --seeds ({len(o['seeds'])} of them) disagree: leave one out")
    seeds = o["seeds"] or list(range(o["n"] or 64))
    recipe = Recipe(o["guidance"], o["clip"], o["threshold"], o["dtype"], choose_device(o["device"]))
    loaded = pretrained.load(o["model"], recipe.state_dtype)
    taken = ("nfe", "steps", "grid", "denoise", "batch", "trajectory")
    job = jobs.make_job(
        loaded,
        o["model"],
        o["solver"],
        options=jobs.choose_options(o["solver"], given(ctx)),
        seeds=seeds,
        labels=jobs.choose_labels(o["label"], loaded.classes, seeds),
        recipe=recipe,
        **{name: o[name] for name in taken},
    )
    out = o["out"] or Path("samples") / f"{default_name(ctx)}.png"
    with tqdm(total=1.0, desc=o["solver"], bar_format=BAR, miniters=0, delay=1, disable=None, leave=False) as bar:

        def watch(done: int, lam: float) -> None:
            within = (lam - job.grid[0]) / (job.grid[-1] - job.grid[0] or 1)
            bar.set_postfix_str(f"{done} images done, λ = {lam:+.2f}", refresh=False)
            bar.update(max(0.0, (done + min(job.batch, len(seeds) - done) * within) / len(seeds) - bar.n))

        written = {"save_plan": o["save_plan"], "overwrite": o["overwrite"], "command": command_line()}
        report = generate.generate(job, loaded, out, **written, watch=watch)
    images = f"{len(seeds)} image{'s' * (len(seeds) > 1)}"
    click.echo(f"{o['solver']}: {images}, {report.spent}, {report.seconds:.1f} s, {out}")
    for warning in report.warnings:
        click.echo(f"Warning: {warning}", err=True)


@main.command(resumable=False)
@click.option("--schedule", help="ddpm_linear, vp_linear, cosine, edm or flow. [default: ddpm_linear]")
@click.argument("solver")
@budget
@settings("eta", "r1", "r2", "variance", "variable")
@path("--save", metavar="FILE.json", help="Write it, to be sampled with, sample --solver FILE.json, or shown, plan FILE.json.")
@path("--png", metavar="FILE.png", help="Draw it as a heat map (takes matplotlib).")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@click.pass_context
def plan(ctx: click.Context, solver: str, save: Path | None, png: Path | None, overwrite: bool, **o: Any) -> None:
    """Print the table of numbers that SOLVER, a name or a plan's .json file, is at a given budget."""
    from experiments.sampling import generate, jobs

    taken = ("schedule", "nfe", "steps", "grid", "denoise")
    made = jobs.make_plan(solver, options=jobs.choose_options(solver, given(ctx)), **{name: o[name] for name in taken})
    generate.write_plan(made, save, png, overwrite)
    click.echo(str(made))


@main.command(resumable=False)
@click.argument("names", metavar="[SOLVER]...", nargs=-1)
@click.pass_context
def verify(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Measure on this machine what the SOLVERs claim, all of them by default; exit code 1 if a claim does not hold."""
    from solvers.verify import verify

    ctx.exit(0 if verify(names, click.echo) else 1)


@main.command(resumable=False)
def solvers() -> None:
    """List the solvers: name, order, NFE a step, options, source."""
    from solvers.registry import table

    click.echo(table())


@main.command(resumable=False)
@click.argument("samples")
@click.option(
    "--reference",
    default="fashion-train",
    show_default=True,
    metavar="PATH|fashion-train",
    help="What they are compared with: an .npz of images or of mu and sigma, a folder, or the 60,000 training images.",
)
@click.option("--features", type=click.Choice(["classifier", "inception"]), default="classifier", show_default=True)
@click.option("--n", type=click.IntRange(1), help="Only the first N images. [default: all]")
@path("--json", metavar="FILE.json", help="Write the numbers, and all that they are relative to.")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@on_device
def evaluate(samples: str, reference: str, features: str, n: int | None, json: Path | None, overwrite: bool, device: str) -> None:
    """Compare SAMPLES with real images: an .npz or a folder as `sample` writes them, or fashion-test, real ones, for the floor.

    Distances in the features of the classifier are named after it; --features inception gives the field's FID and KID
    (pip install 'diffode[inception]').
    """
    from experiments.metrics import evaluate as run

    out: Any = {"out": json, "overwrite": overwrite, "command": command_line()}
    done = run.evaluate(samples, reference=reference, features_name=features, n=n, device=device, **out)
    click.echo(str(done))
    for warning in done.warnings:
        click.echo(f"Warning: {warning}", err=True)


@main.command()
@click.option("--model", default="fashion", show_default=True, metavar="NAME|FILE", help="As `sample` takes it.")
@click.option(
    "--solvers",
    default="ddim,dpm2,dpm3,dpmpp2m,dpmpp3m,unipc2,unipc3,deis-rho,ipndm,heun",
    show_default=True,
    help="Names that `solvers` lists, with options as unipc3(start=single); or all.",
)
@click.option("--nfe", type=Numbers(), default="5,6,8,10,12,15,20,30,50", show_default=True, help="Evaluations an image.")
@click.option(
    "--grids",
    default="logsnr,time,quadratic,karras",
    show_default=True,
    help="Names of grids, and optimal, which is found for the model and each solver and NFE.",
)
@click.option(
    "--rtol",
    default="0.1,0.03,0.01,0.003,0.001,0.0001",
    show_default=True,
    help="Tolerances of adaptive solvers, which have no NFE.",
)
@click.option("--n", type=click.IntRange(1), default=32, show_default=True, help="How many samples.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first; the next have the next.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Samples at a time.")
@click.option("--label", help="As `sample` takes it.")
@guided
@click.option("--clip", is_flag=True, help="Clip x̂0 to [−1, 1] at every evaluation, the solution's too.")
@click.option("--threshold", type=float, metavar="QUANTILE", help="Dynamic thresholding of x̂0, the solution's too.")
@click.option("--denoise/--no-denoise", default=False, help="End with a step to σ = 0, which is one of the evaluations.")
@click.option("--tolerance", type=float, default=1e-8, show_default=True, help="Of the solution that all are compared with.")
@click.option(
    "--features",
    type=click.Choice(["auto", "classifier", "inception", "none"]),
    default="auto",
    show_default=True,
    help="Compare images in these, too; auto is the classifier for images of its size.",
)
@click.option(
    "--data", metavar="PATH|fashion-train", help="Add the Fréchet distance from these, as `evaluate --reference` takes them."
)
@path("--out", help="The folder of rows, pictures and report. [default: results/compare- and the model's name]")
@click.option("--overwrite", is_flag=True, help="Begin again where there are rows.")
@on_device
@in_dtype
def compare(**o: Any) -> None:
    """Find out which solver, which grid and how many evaluations a model needs.

    Errors are against the solution of the model's ODE. Interrupted, the same command goes on where it was.
    """
    from experiments.common import results
    from experiments.comparison.cells import as_filename, make_cells, parse_contenders, parse_tolerances
    from experiments.comparison.compare import compare_solvers
    from experiments.comparison.problem import Settings
    from experiments.sampling.recipe import choose_device

    taken = ("model", "n", "seed", "label", "guidance", "clip", "threshold", "dtype", "denoise", "batch")
    settings = Settings(**{name: o[name] for name in taken}, device=choose_device(o["device"]))
    grids = [grid.strip() for grid in o["grids"].split(",")]
    cells = make_cells(parse_contenders(o["solvers"]), grids, o["nfe"], parse_tolerances(o["rtol"]))
    out = o["out"] or Path("results") / as_filename(f"compare-{Path(o['model']).stem}")
    how = {name: o[name] for name in ("features", "data", "tolerance", "overwrite")}
    rows, answer = compare_solvers(settings, cells, out, command=command_line(), **how)
    click.echo(f"{answer}\n{out / 'report.html'}")
    results.finish(rows, out / "rows")


@main.command(resumable=False)
@click.option("--out", type=click.Path(path_type=Path), default="runs/train", show_default=True, help="The run's folder.")
@click.option("--resume", is_flag=True, help="Go on from the folder's last checkpoint.")
@click.option(
    "--images",
    type=click.IntRange(1),
    default=1_000_000,
    show_default=True,
    help="Stop after so many training images; may be raised on --resume.",
)
@click.option(
    "--every",
    type=click.IntRange(1),
    default=50_000,
    show_default=True,
    help="Images between checkpoints and sample grids.",
)
@click.option("--data-dir", help="idx files, a folder of PNG or JPEG, or an .npz. [default: Fashion-MNIST from Debian's package]")
@click.option("--schedule", default="ddpm_linear", show_default=True)
@click.option("--predicts", default="velocity", show_default=True, help="noise, data, velocity or flow.")
@click.option(
    "--gamma",
    type=click.Choice(["simple", "native"]),
    default="simple",
    show_default=True,
    help="γ of L_γ: 1 (L_simple), or such that the plain error of the prediction counts.",
)
@click.option("--width", default=48, show_default=True, help="Channels of the U-Net's first level.")
@click.option("--multipliers", default="1,2", show_default=True, help="Widths of its levels, in units of --width.")
@click.option("--blocks", default=1, show_default=True, help="Residual blocks a level.")
@click.option("--attention", default="7", show_default=True, help="Resolutions with self-attention.")
@click.option("--patch", default=2, show_default=True, help="Space-to-depth factor at the input.")
@click.option("--batch", default=128, show_default=True)
@click.option("--lr", default=1e-3, show_default=True, help="Learning rate of AdamW.")
@click.option("--drop-label", default=0.1, show_default=True, help="How often the label is dropped, for guidance.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--bf16", is_flag=True, help="Autocast the network to bfloat16; twice as fast where the CPU or GPU has it.")
@on_device
def train(**o: Any) -> None:
    """Train the U-Net. Killed at any moment, it goes on with --resume from its last checkpoint, to the same bits."""
    from experiments.training import train as run

    run.train(run.TrainOptions(**o), command_line())


if __name__ == "__main__":
    main()
