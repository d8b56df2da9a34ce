"""The command line: `python cli.py sample --solver ddim`. It parses and calls; what it calls is imported when it is needed,
so that --help does not wait for torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from diffode._version import __version__
from experiments.common.commands import Commands, Script, command_line, warn
from experiments.common.options import FileName, examples, from_command_line
from experiments.common.terminal import say
from experiments.comparison.options import comparison_options
from experiments.metrics.options import evaluation_options
from experiments.sampling import options
from experiments.sampling.names import default_output
from experiments.training.options import training_options

if TYPE_CHECKING:
    from experiments.comparison.problem import Settings
    from experiments.sampling.recipe import Recipe
    from experiments.sampling.source import Source
    from solvers import Budget


@cloup.group(
    cls=Commands,
    context_settings=cloup.Context.settings(help_option_names=["-h", "--help"], max_content_width=110),
    epilog=examples("sample --solver dpmpp2m --nfe 20", "sample --help", "compare --model fashion"),
)
@click.version_option(__version__, prog_name="diffode")
def main() -> None:
    """Sample diffusion models by integrating their probability-flow ODE in log-SNR time."""


SAMPLING, MEASURING, TRAINING = (cloup.Section(title) for title in ("Sampling", "Measuring", "Training"))


@main.command(
    cls=Script,
    section=SAMPLING,
    epilog=examples(
        "sample --solver unipc3 --nfe 10 --label bag --guidance 2 --out bags.png",
        "sample --solver ddim --eta 1 --seeds 0-49999 --batch 500 --out ddpm.npz",
        "sample --solver dpm23 --rtol 0.01 --model mixture --trajectory",
        "sample --init photo.png --strength 0.6 --n 4",
    ),
)
@options.images_group
@options.solver_group
@options.recipe_group(options.batch)
@options.output_group
@click.pass_context
def sample(
    ctx: click.Context,
    source: Source,
    solver: str,
    budget: Budget,
    images: options.Images,
    recipe: Recipe,
    batch: int,
    out: Path | None,
    trajectory: bool,
    save_plan: Path | None,
    floats: bool,
    overwrite: bool,
    typed_options: options.TypedOptions,
) -> None:
    """Draw images, or whatever a model makes.

    Interrupted, the same command goes on where it was; FILE.json beside the output says how to make it again.
    """
    from experiments.sampling import generate, init_images, jobs, progress

    loaded = source.load(recipe.state_dtype)
    task = jobs.prepare_job(
        loaded,
        source,
        solver,
        budget,
        options=typed_options,
        seeds=images.seeds,
        labels=jobs.choose_labels(images.label, loaded.classes, images.seeds),
        batch=batch,
        recipe=recipe,
        trajectory=trajectory,
        floats=floats,
        init=None if images.init is None else init_images.read(images.init, loaded.image),
        noise=images.noise,
    )
    out = out or default_output(source.model, solver, from_command_line(ctx), ".npz" if task.job.floats else ".png")
    with progress.progress(task) as watch:
        summary = generate.generate(task, out, save_plan=save_plan, overwrite=overwrite, command=command_line(), watch=watch)
    say(f"{solver}: {task.job.count}, {summary.cost(task.job.unit)}, {summary.seconds:.1f} s, {out}")
    warn(ctx, summary.warnings)


@main.command(
    cls=Script,
    section=SAMPLING,
    resumable=False,
    epilog=examples(
        "plan dpm2 --nfe 4",
        "plan unipc3 --nfe 8 --schedule cosine --grid time --png unipc3.png",
        "plan ddim --nfe 20 --eta 1 --save ddpm20.json",
        "plan ddpm20.json",
    ),
)
@cloup.argument("solver")
@options.planning_group
@options.plan_output_group
def plan(
    solver: str,
    schedule: str | None,
    budget: Budget,
    typed_options: options.TypedOptions,
    save: Path | None,
    png: Path | None,
    overwrite: bool,
) -> None:
    """Print the table of numbers that SOLVER, a name or a plan's .json file, is at a given budget."""
    from experiments.sampling.jobs import make_plan
    from experiments.sampling.outputs import write_plan

    table = make_plan(solver, schedule, budget, options=typed_options)
    write_plan(table, save, png, overwrite)
    say(table)


@main.command(
    cls=Script,
    section=SAMPLING,
    resumable=False,
    epilog=examples("verify", "verify ddim unipc3 dpmpp2m+unic"),
)
@cloup.argument("names", metavar="[SOLVER]...", nargs=-1)
@click.pass_context
def verify(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Measure on this machine what the SOLVERs claim, all of them by default; exit code 1 if a claim does not hold."""
    from solvers.verify import verify

    ctx.exit(0 if verify(names, say) else 1)


@main.command(cls=Script, section=SAMPLING, resumable=False, epilog=examples("solvers", "solvers | grep unipc"))
def solvers() -> None:
    """List the solvers: name, order, NFE per step, options, source."""
    from solvers.registry import table

    say(table())


@main.command(
    cls=Script,
    section=MEASURING,
    resumable=False,
    epilog=examples(
        "evaluate samples.npz",
        "evaluate samples.npz --reference photos/ --features inception --json fid.json",
        "evaluate fashion-test",
    ),
)
@cloup.argument("samples", type=FileName(str))
@evaluation_options
@click.pass_context
def evaluate(
    ctx: click.Context,
    samples: str,
    reference: str,
    features: str,
    n: int | None,
    device: str,
    json: Path | None,
    overwrite: bool,
) -> None:
    """Compare SAMPLES with real images: an .npz or a folder as `sample` writes them, or fashion-test, real ones, for the floor.

    Distances in the features of the classifier are named after it; --features inception gives the field's FID and KID
    (pip install 'diffode[inception]').
    """
    from experiments.metrics import evaluate as run

    measured_in = {"reference": reference, "features_name": features, "device": device}
    evaluation = run.evaluate(samples, n=n, out=json, overwrite=overwrite, command=command_line(), **measured_in)
    say(evaluation)
    warn(ctx, evaluation.warnings)


@main.command(
    cls=Script,
    section=MEASURING,
    epilog=examples(
        "compare --pipeline hub:OWNER/NAME --prompt 'a red bicycle' --guidance 5 --nfe 5,8,10,20",
        "compare --model mine:model --solvers 'ddim,unipc3,unipc3(start=single)' --nfe 5,10,20",
        "compare --model cifar10:ddpm.safetensors --grids logsnr,optimal --device cuda",
    ),
)
@comparison_options
def compare(
    settings: Settings,
    solvers: str,
    nfe: list[int],
    grids: str,
    rtol: str,
    features: str,
    similarity: str,
    data: str | None,
    tolerance: float | str | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Find out which solver, which grid and how many evaluations a model needs.

    Errors are against the solution of the model's ODE. Interrupted, the same command goes on where it was.
    """
    from experiments.common import results
    from experiments.comparison.cells import as_filename, make_cells, parse_contenders, parse_tolerances
    from experiments.comparison.compare import compare_solvers

    cells = make_cells(parse_contenders(solvers), [grid.strip() for grid in grids.split(",")], nfe, parse_tolerances(rtol))
    out = out or Path("results") / as_filename(f"compare-{Path(settings.model).stem}")
    how: Any = {"features": features, "similarity": similarity, "data": data, "tolerance": tolerance, "overwrite": overwrite}
    rows, answer = compare_solvers(settings, cells, out, **how, command=command_line())
    say(f"{answer}\n{out / 'report.html'}")
    results.finish(rows, out / "rows")


@main.command(
    cls=Script,
    section=TRAINING,
    resumable=False,
    epilog=examples(
        "train --images 2000000 --bf16",
        "train --data photos/ --width 64 --attention 8 --out runs/photos",
        "train --out runs/photos --resume --images 4000000",
    ),
)
@training_options
def train(**settings: Any) -> None:
    """Train the U-Net. Killed at any moment, it goes on with --resume from its last checkpoint, to the same bits."""
    from experiments.training import train as run

    run.train(run.TrainOptions(**settings), command_line())


if __name__ == "__main__":
    main()
