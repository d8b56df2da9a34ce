"""python cli.py compare: which solver, which grid and how many evaluations, for one model.

Solvers are compared, not recipes: all begin at the same x_T and end at the same λ; every evaluation is counted, that of a final
denoising step too; guidance takes two network calls per evaluation; and x̂0 is neither clipped nor thresholded unless that is
asked for.

The folder OUT holds, each written as soon as it is known: `solution`, the reference solution in batches; `rows.csv` and
`rows.json`, one row per cell (cells.py) with its errors (ground_truth.py), further measures (measures.py) and cost; `pictures`,
for each cell the first samples, as pictures; `grids`, the optimal grids. Last come what follows from the rows alone: answer.json,
the curves and report.html. A run that was killed is resumed by the same command, and nothing is computed twice.

But for `solution`, whose names and checksums say whose they are, rows.json is written first: the other files are this
comparison's own where it is, and are refused where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor

from diffode.errors import InputError
from diffode.files import atomic, clear_dead, folder_for, locked, write_json
from diffode.images import drawings, writers
from diffode.model import EpsModel
from diffode.models import turns
from experiments.common import results
from experiments.common.destinations import refuse_existing, require_name
from experiments.common.results import Row
from experiments.comparison import ground_truth, measures
from experiments.comparison.cells import OPTIMAL, Cell, cell_filename, is_user_defined
from experiments.comparison.curves import FIGURES, save_curves
from experiments.comparison.estimate import announce_cost
from experiments.comparison.grid_cache import OptimalGridCache
from experiments.comparison.limits import check_solution, limit_of
from experiments.comparison.measures import Measures
from experiments.comparison.problem import Problem, Settings
from experiments.comparison.ranking import answer, median_answer, pareto
from experiments.comparison.report import write_report
from experiments.comparison.rows import known_rows, read_rows
from experiments.comparison.tolerance import AUTO, find_tolerance
from experiments.sampling.jobs import digest
from experiments.sampling.recipe import flat

PICTURED, PALETTE = 8, 16  # samples in a picture, and colours of a drawing


def compare_solvers(
    settings: Settings,
    cells: Sequence[Cell],
    out: Path,
    *,
    features: str = measures.AUTO,
    data: str | None = None,
    similarity: str = measures.AUTO,
    tolerance: float | str | None = None,
    command: str = "",
    overwrite: bool = False,
) -> tuple[list[Row], str]:
    """Compute the rows of the cells and write all files that the module docstring names; return the rows and the answer in words.

    features, data, similarity: see measures.choose_measures. tolerance: of the reference solution, or "auto" (tolerance.py); by
    default that for a pipeline, and 1e-8 for others. command: for the files. InputError for what cannot be compared, and for a
    reference solution whose own error is not ten times smaller than the best contender's, unless it has a limit.
    """
    if tolerance is None:
        tolerance = AUTO if settings.source.pipeline else ground_truth.TOLERANCE
    if not isinstance(tolerance, str):
        ground_truth.check_tolerance(tolerance)
    refuse_foreign(out, cells, overwrite)
    problem = Problem(settings)
    chosen = measures.choose_measures(features, data, problem, similarity)
    about, cache = describe(problem, chosen), OptimalGridCache(problem, out / "grids", command)
    with folder_for(out / "rows"), locked(out / ".lock", f"writing {out}"):
        clear_dead(out, deep=True)
        previous = None if overwrite else known_rows(out)
        if previous is not None:  # refused before the solution, which may take minutes
            tolerance = previous[0]["solution"]["tolerance"] if tolerance == AUTO else tolerance
            results.check(out / "rows", {**about, "solution": {**previous[0]["solution"], "tolerance": tolerance}})
            check_user_defined(problem, previous[1])
        lacking = cells if previous is None else results.missing(cells, previous[1])
        announce_cost(problem, out.name, lacking, tolerance)
        solution = solve(problem, cells, out / "solution", tolerance)
        if previous is not None:  # on another machine its own error is rounded differently, and resumed rows keep what they had
            solution = replace(solution, about=previous[0]["solution"])
        about["solution"] = solution.about
        reference = problem.images(solution.x)
        of_samples, of_images = chosen.of_samples(solution.x), chosen.of_images(reference)

        def compute(cell: Mapping[str, Any]) -> dict[str, Any]:
            def measure_and_picture(x: Tensor) -> dict[str, float]:
                images = problem.images(x)
                save_picture(images, reference, picture_of(out, cell_filename(cell)))
                return {**of_images(images), **of_samples(x)}

            row = ground_truth.measure_cell(problem, solution, cache.with_optimal_grid(cell), measure_and_picture)
            return {**row, "plan": plan_digest(problem, cell)} if is_user_defined(cell["solver"]) else row

        rows = results.fill(out / "rows", cells, compute, about=about, command=command, overwrite=overwrite)
        save_picture(reference, reference, picture_of(out, "reference"))
        return rows, conclude(out)


def solve(problem: Problem, cells: Sequence[Cell], folder: Path, tolerance: float | str) -> ground_truth.Solution:
    """The reference solution, with a limit if its tolerance is to be found."""
    if isinstance(tolerance, str):
        return ground_truth.find_solution(problem, folder, find_tolerance(problem, cells, folder), limited=True)
    return ground_truth.find_solution(problem, folder, tolerance)


def refuse_foreign(out: Path, cells: Sequence[Cell], overwrite: bool) -> None:
    """InputError for a file in the way of those that will be written, unless it is a comparison's own, or may be overwritten."""
    require_name(out, "results/mine")
    pictures = [picture_of(out, name) for name in ("reference", *map(cell_filename, cells))]
    grids = [OptimalGridCache.file(out / "grids", cell) for cell in cells if cell["grid"] == OPTIMAL]
    names = ("rows.json", "rows.csv", "answer.json", "report.html", *FIGURES)
    files = [*(out / name for name in names), *pictures, *grids, out / "solution" / "any"]
    refuse_existing(files, overwrite=overwrite or (out / "rows.json").is_file())


def describe(problem: Problem, chosen: Measures) -> dict[str, Any]:
    """What all rows have in common: the settings, the model, the ends of the ODE and the measures."""
    settings = problem.settings
    return {
        **{name: value for name, value in flat(settings).items() if name != "label"},
        "labels": problem.labels and (settings.label or "all in turn"),
        "sha256": problem.loaded.sha256,
        "shape": list(problem.loaded.image),
        **({"image": list(problem.image)} if problem.loaded.model.decode else {}),
        "lam": [problem.schedule.lam_min, problem.schedule.lam_max],
        **({"own": own} if (own := own_parts(problem.loaded.model)) else {}),
        **chosen.about,
    }


def own_parts(model: EpsModel) -> str:
    """What a model of one's own has of its own, in words, "" if it is a network alone."""
    rows = turns.rows_of(model)
    parts = [str(model.guidance)] * bool(model.guidance)
    parts += [f"conditions of {rows} row{'s' * (rows > 1)}, in turn by seed"] * bool(rows)
    parts += [f"{len(model.hooks)} function{'s' * (len(model.hooks) > 1)} that change x̂0"] * bool(model.hooks)
    return "; ".join(parts)


def conclude(out: Path) -> str:
    """Write answer.json, the curves and report.html from all rows in OUT, those of earlier commands included; return the
    answer."""
    about, rows = read_rows(out)
    check_solution(about, rows)
    text = "\n".join(filter(None, [answer(rows), median_answer(rows), limit_of(about, rows)]))
    fronts = {f"front_{cost}": pareto(rows, cost) for cost in ("spent", "seconds")}
    write_json(out / "answer.json", {"answer": text, **fronts})
    try:
        save_curves(rows, out)
    except InputError as error:  # without matplotlib; the page draws its own
        text += f"\nNo curves as PNG and SVG: {error}"
    write_report([out], out / "report.html")
    return text


def plan_digest(problem: Problem, cell: Mapping[str, Any]) -> str | None:
    """The digest of a solver's plan for the cell's budget on equal steps in λ, which identifies a user-defined solver; None if it
    has no plan for that budget."""
    try:
        plan = problem.prepare(cell["solver"], "logsnr", cell["nfe"]).plan
    except InputError:
        return None
    return None if plan is None else digest(plan)


def check_user_defined(problem: Problem, rows: Sequence[Row]) -> None:
    """InputError for rows of a user-defined solver whose plans have changed since."""
    for row in rows:
        if "rmse" in row and is_user_defined(row["solver"]) and row.get("plan") != plan_digest(problem, row):
            raise InputError(
                f"{row['solver']} is not the solver that it was when its rows were made: give overwrite=True, or another out"
            )


def picture_of(out: Path, name: str) -> Path:
    """The file of the picture of a cell, or of the reference solution."""
    return out / "pictures" / f"{name}.png"


def save_picture(x: Tensor, solution: Tensor, file: Path) -> None:
    """The first samples of x (n, *shape) side by side, as a PNG; all of them in one picture, if they are points or numbers.

    solution: what they are drawn over and scaled by, if they are no images (drawings.py).
    """
    most = len(x) if drawings.are_drawn_together(x.shape[1:]) else PICTURED
    strip = rearrange(drawings.tiles(x[:most], solution[:most]), "n h w c -> h (n w) c")
    picture = writers.picture(strip)
    if drawings.are_drawn(x.shape[1:]):
        picture = picture.quantize(PALETTE)
    with atomic(file) as part:
        picture.save(part, format="PNG", optimize=True)
