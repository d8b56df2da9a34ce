"""python cli.py compare: which solver, which grid and how many evaluations, for one model.

A solver is compared, not a recipe: all begin at the same x_T and end at the same λ, every evaluation is counted, that of a final
denoising step too, guidance takes two network calls an evaluation, and x̂0 is left alone unless that is asked for.

In the folder OUT are, as they are finished: `solution`, the reference solution in batches; `results.csv` and `results.json`, a row a
cell (contenders.py), with its error (solution.py), what else tells it from the solution (judges.py) and what it took; `pictures`,
of each cell the images of the first seeds; `grids`, the optimal grids. At the end the answer is drawn from the rows: answer.json,
curves and report.html. Killed at any moment, the same command goes on, and what is there is not computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor

from diffode.errors import InputError
from diffode.files import alone, atomic, folder_for, write_json
from diffode.images import writers
from diffode.images.datasets import to_pixels
from experiments.common import results
from experiments.common.results import Row
from experiments.comparison import ground_truth, measures
from experiments.comparison.cells import Cell, is_of_ones_own, stem
from experiments.comparison.curves import curves
from experiments.comparison.grid_cache import Kept
from experiments.comparison.problem import Problem, Settings
from experiments.comparison.ranking import answer, check_solution, pareto, typical
from experiments.comparison.report import report
from experiments.sampling.jobs import digest
from solvers.registry import find

SHOWN = 8  # samples in a picture


def compare(
    settings: Settings,
    cells: Sequence[Cell],
    out: Path,
    *,
    features: str = measures.AUTO,
    data: str | None = None,
    tolerance: float = ground_truth.TOLERANCE,
    command: str = "",
    overwrite: bool = False,
) -> tuple[list[Row], str]:
    """Compute the rows of the cells, and write all that the module docstring names; the rows, and the answer in words.

    features, data: see measures.choose. tolerance: of the solution. InputError for what cannot be compared, and for a solution that
    is not known ten times better than the best contender is right.
    """
    problem = Problem(settings)
    judged = measures.choose(features, data, problem)
    about = {
        **{name: value for name, value in asdict(settings).items() if name != "label"},
        "labels": problem.labels and (settings.label or "all in turn"),
        "sha256": problem.loaded.sha256,
        "shape": list(problem.loaded.image),
        "lam": [problem.schedule.lam_min, problem.schedule.lam_max],
        **judged.about,
    }
    with folder_for(out / "rows"), alone(out / ".lock", f"writing {out}"):
        before = None if overwrite else results.known_settings(out / "rows")
        if before is not None:  # what can be refused is, before the solution, which may take minutes
            results.check(out / "rows", {**about, "solution": {**before["solution"], "tolerance": tolerance}})
            refuse_changed(problem, results.read(out / "rows")[1])
        solution = ground_truth.solve(problem, out / "solution", tolerance)
        judge, pictures, optimal = judged.of(solution.x), out / "pictures", Kept(problem, out / "grids", command)
        picture(solution.x, pictures / "reference.png")

        def measure(cell: Mapping[str, Any]) -> dict[str, Any]:
            def also(x: Tensor) -> dict[str, float]:
                picture(x, pictures / f"{stem(cell)}.png")
                return judge(x)

            own = {"plan": plan_of(problem, cell)} if is_of_ones_own(cell["solver"]) else {}
            return {**ground_truth.measure(problem, solution, optimal.told(cell), also), **own}

        about["solution"] = before["solution"] if before is not None else solution.about  # elsewhere it is rounded otherwise
        made = results.fill(out / "rows", cells, measure, about=about, command=command, overwrite=overwrite)
        _, found = results.read(out / "rows")  # with what earlier commands added
        check_solution(about, found)
        said = "\n".join(filter(None, [answer(found), typical(found)]))
        write_json(
            out / "answer.json", {"answer": said, **{f"front_{cost}": pareto(found, cost) for cost in ("spent", "seconds")}}
        )
        try:
            curves(found, out)
        except InputError as error:  # without matplotlib; the page draws its own
            said += f"\nNo curves as PNG and SVG: {error}"
        report([out], out / "report.html")
    return made, said


def plan_of(problem: Problem, cell: Mapping[str, Any]) -> str | None:
    """The digest of what a solver makes of a budget on equal steps in λ, by which it is known; None if it makes nothing."""
    try:
        name, lams, options = problem.plan(cell["solver"], "logsnr", cell["nfe"])
    except InputError:
        return None
    return digest(find(name).plan(lams, problem.schedule, **options))


def refuse_changed(problem: Problem, found: Sequence[Row]) -> None:
    """InputError for rows of a solver of one's own that is another now."""
    for row in found:
        if "rmse" in row and is_of_ones_own(row["solver"]) and row["plan"] != plan_of(problem, row):
            raise InputError(
                f"{row['solver']} is not the solver that it was when its rows were made: give --overwrite, or another --out"
            )


def picture(x: Tensor, file: Path) -> None:
    """The first samples of x (n, *shape) side by side, as a PNG, if they are images."""
    if not writers.are_images(x.shape[1:]):
        return
    strip = rearrange(to_pixels(x[:SHOWN]), "n h w c -> h (n w) c")
    with atomic(file) as part:
        writers.picture(strip).save(part, format="PNG", optimize=True)
