"""What a comparison will cost, said before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffode.guidance import calls_of
from experiments.common.progress import announce, duration, on_terminal
from experiments.comparison.cells import OPTIMAL
from experiments.comparison.cost import metered
from experiments.comparison.problem import Problem

SOLUTION = 650  # evaluations of the reference solution at a tolerance of 1e-8, as the shipped models took; of order 8


def announce_cost(problem: Problem, name: str, cells: Sequence[Mapping[str, Any]], tolerance: float) -> None:
    """Say how many evaluations these cells take, of which a call of the network for a batch is timed, where no bar shows it."""
    if not cells or on_terminal() or (seconds := seconds_of_one(problem)) is None:
        return
    batches, rows, schedule = len(problem.batches), problem.batches[0], problem.schedule
    lams = np.linspace(max(schedule.lam_min, -20.0), min(schedule.lam_max, 20.0), 101)  # as of steps that are equal in λ
    calls = float(calls_of(problem.labelled(problem.model, rows).guidance, lams, rows.stop - rows.start).mean())
    planned = batches * sum(cell["nfe"] or 0 for cell in cells)
    solution = batches * round(SOLUTION * (1e-8 / tolerance) ** (1 / 8))
    uncounted = {
        "adaptive solvers": any(cell["nfe"] is None for cell in cells),
        "optimal grids": any(cell["grid"] == OPTIMAL for cell in cells),
    }
    more = " and ".join(what for what, asked in uncounted.items() if asked)
    count = f"{len(cells)} cell{'s' * (len(cells) > 1)}"
    announce(
        f"{name}: {count} of {planned:,} evaluations of a batch, and about {solution:,} for the reference solution, "
        f"which are {round((planned + solution) * calls):,} network calls: about {duration((planned + solution) * seconds)}, by "
        f"one evaluation that took {duration(seconds)}" + f"; what {more} take is not known before" * bool(more)
    )


def seconds_of_one(problem: Problem) -> float | None:
    """The seconds of one evaluation of a batch; None for a model that fails, of which the solution says why."""
    recipe, rows = problem.settings.recipe, problem.batches[0]
    try:
        model, x = problem.labelled(problem.model, rows), problem.initial_state(rows, recipe.state_dtype, recipe.device)
        model(x, problem.schedule.lam_min)  # the first call takes longer, on a GPU by far
        with metered(recipe.device) as cost:
            model(x, problem.schedule.lam_min)
    except Exception:
        return None
    return cost.seconds
