"""What a comparison will cost, said before it begins."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffode.guidance import calls_of
from diffode.model import EpsModel
from experiments.common.progress import announce, duration, on_terminal
from experiments.comparison.cells import OPTIMAL
from experiments.comparison.cost import metered
from experiments.comparison.problem import Problem
from experiments.comparison.tolerance import TOLERANCES

SOLUTION = 650  # evaluations of a solution at a tolerance of 1e-8, as the shipped models took; of order 8


def announce_cost(problem: Problem, name: str, cells: Sequence[Mapping[str, Any]], tolerance: float | str) -> None:
    """Say how many evaluations these cells and the solution take, by one of a batch that is timed for each; and decoding, if
    there is any. Nothing where a bar shows it. tolerance: of the solution, or "auto", whose least is counted."""
    if not cells or on_terminal() or (seconds := seconds_of_one(problem)) is None:
        return
    batches, rows, schedule = len(problem.batches), problem.batches[0], problem.schedule
    lams = np.linspace(max(schedule.lam_min, -20.0), min(schedule.lam_max, 20.0), 101)  # as of steps that are equal in λ
    calls = float(calls_of(problem.labelled(problem.model, rows).guidance, lams, rows.stop - rows.start).mean())
    planned = batches * sum(cell["nfe"] or 0 for cell in cells)
    solution, known = batches * evaluations(problem, tolerance), not isinstance(tolerance, str)
    decoding = batches * (len(cells) + 1) * seconds.decoding
    uncounted = {
        "adaptive solvers": any(cell["nfe"] is None for cell in cells),
        "optimal grids": any(cell["grid"] == OPTIMAL for cell in cells),
        "lower tolerances": not known,
    }
    more = " and ".join(what for what, asked in uncounted.items() if asked)
    whole = planned * seconds.contender + solution * seconds.solution + decoding
    announce(
        f"{name}: {len(cells)} cell{'s' * (len(cells) > 1)} of {planned:,} evaluations of a batch, and "
        f"{'about' if known else 'at least'} {solution:,} for the reference solution, which are "
        f"{round((planned + solution) * calls):,} network calls: about {duration(whole)}, by one evaluation that took "
        f"{duration(seconds.contender)}, and {duration(seconds.solution)} in {problem.reference[0]}"
        + f", {duration(decoding)} of it for decoding" * bool(decoding)
        + f"; what {more} take is not known before" * bool(more)
    )


def evaluations(problem: Problem, tolerance: float | str) -> int:
    """Of a solution, about, with those at ten times the tolerance, and those for the rounding of a network in float32."""
    least = TOLERANCES[0] if isinstance(tolerance, str) else tolerance
    each = [10 * least, least, *[least] * (problem.reference[0] == "float32")]
    return sum(round(SOLUTION * (1e-8 / one) ** (1 / 8)) for one in each)


class Seconds(NamedTuple):
    """Of one evaluation of a batch, as a contender's and as the solution's, and of decoding a batch."""

    contender: float
    solution: float
    decoding: float


def seconds_of_one(problem: Problem) -> Seconds | None:
    """The seconds; None for a model that fails, of which the solution says why."""
    recipe, rows, device = problem.settings.recipe, problem.batches[0], problem.reference_device

    def seconds(model: EpsModel, x: Tensor, on: str) -> float:
        model = problem.labelled(model, rows)
        model(x, problem.schedule.lam_min)  # the first call takes longer, on a GPU by far
        with metered(on) as cost:
            model(x, problem.schedule.lam_min)
        return cost.seconds

    try:
        x = problem.initial_state(rows, recipe.state_dtype, recipe.device)
        of_contender = seconds(problem.model, x, recipe.device)
        of_solution = seconds(problem.reference[1], x.to(device, torch.float64), device)
        began = time.perf_counter()
        problem.images(x)
        decoding = time.perf_counter() - began if problem.loaded.model.decode else 0.0
    except Exception:
        return None
    return Seconds(of_contender, of_solution, decoding)
