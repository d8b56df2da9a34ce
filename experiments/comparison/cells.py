"""Contenders and cells. A contender is a solver as a user names it; a cell is one contender at one cost.

A contender is a solver's name, with options in parentheses if it has any: unipc3(start=single). A cell says what is run:

    solver    the contender
    grid      a name in diffode.grid.GRIDS, or "optimal"; "own" for an adaptive solver, which chooses its own steps
    nfe       exactly so many evaluations; None for an adaptive solver
    rtol      the tolerance of an adaptive solver; None for the others
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffode.errors import InputError
from diffode.grid import GRIDS
from experiments.sampling.jobs import parse_options
from solvers import SOLVERS, Solver, registry
from solvers.options import Options
from solvers.registry import find

Cell = dict[str, Any]
OPTIMAL = "optimal"  # the grid that is found for the solver, the model and the budget
OWN_STEPS = "own"  # the grid of an adaptive solver


def parse_contender(contender: str) -> tuple[Solver, Options]:
    """The solver that a contender names, and its options.

    InputError for an unknown solver or option, a plan from a file, and a solver that draws noise.
    """
    match = re.fullmatch(r"([^()]+)(?:\(([^()]*)\))?", contender.strip())
    if match is None:
        raise InputError(f"{contender!r} is no solver: give NAME, or NAME(option=value, option=value)")
    name, pairs = match[1].strip(), [pair.partition("=") for pair in (match[2] or "").split(",") if pair.strip()]
    if any(not value.strip() for _, _, value in pairs):
        raise InputError(f"an option in {contender!r} has no value: give NAME(option=value)")
    solver = find(name)
    options = parse_options(solver, [(option.strip(), value.strip()) for option, _, value in pairs])
    if solver.fixed_plan is not None:
        raise InputError(f"{name} is a plan, and has one number of evaluations: give the name of a solver")
    if solver.stochastic or options.get("eta"):
        raise InputError(f"{contender} draws noise, so there is no solution to compare it with: take a solver of the ODE")
    return solver, options


def parse_contenders(text: str) -> list[str]:
    """The contenders of a list, separated by commas outside parentheses; "all" stands for `comparable_solvers`.

    InputError as for parse_contender, and for one that is named twice.
    """
    names = [name.strip() for name in re.split(r",(?![^(]*\))", text)]
    if "all" in names:
        others = [name for name in names if name != "all"]
        names = [*others, *(name for name in comparable_solvers() if name not in others)]
    for name in names:
        parse_contender(name)
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"the solver {repeated[0]} is named twice: leave one out")
    return names


def parse_tolerances(text: str) -> list[float]:
    """Comma-separated numbers between 0 and 1; InputError for anything else."""
    try:
        tolerances = [float(part) for part in text.split(",")]
    except ValueError:
        tolerances = []
    if not tolerances or not all(0 < rtol < 1 for rtol in tolerances) or len(set(tolerances)) < len(tolerances):
        raise InputError(f"{text!r} is no list of different tolerances between 0 and 1, as 0.1,0.01,0.001")
    return tolerances


def comparable_solvers() -> Iterator[str]:
    """Every registered solver of the ODE whose cost can be set, by a number of evaluations or by a tolerance."""
    return (name for name, solver in SOLVERS.items() if not solver.stochastic and (solver.nfe_per_step or solver.chooses_steps))


def is_user_defined(contender: str) -> bool:
    """Whether it is MODULE:NAME, whose numbers may change while its name stays."""
    return registry.is_user_defined(contender.partition("(")[0].strip())


def make_cells(
    contenders: Sequence[str], grids: Sequence[str], budgets: Sequence[int], tolerances: Sequence[float] = ()
) -> list[Cell]:
    """Each contender on each grid with each budget, or with each tolerance if it is adaptive; on "optimal" only solvers with a
    plan.

    InputError for a grid that is unknown or named twice, a budget below 1, and if no cell is left.
    """
    if unknown := [grid for grid in grids if grid not in (*GRIDS, OPTIMAL)]:
        raise InputError(f"unknown grid {unknown[0]!r}: expected {', '.join([*GRIDS, OPTIMAL])}")
    if repeated := [grid for grid in grids if grids.count(grid) > 1]:
        raise InputError(f"the grid {repeated[0]} is named twice: leave one out")
    if min(budgets, default=1) < 1:
        raise InputError("a solver needs at least 1 evaluation, not 0: leave 0 out of nfe")
    cells: list[Cell] = []
    for contender in contenders:
        solver, options = parse_contender(contender)
        if solver.chooses_steps and options.keys() & {"rtol", "atol"}:
            raise InputError(
                f"{contender} sets its tolerance, and an adaptive solver is compared at several, rtol = atol: leave it out there"
            )
        if solver.chooses_steps:
            cells += [{"solver": contender, "grid": OWN_STEPS, "nfe": None, "rtol": rtol} for rtol in tolerances]
            continue
        possible = [grid for grid in grids if grid != OPTIMAL or solver.has_plan]
        cells += [{"solver": contender, "grid": grid, "nfe": nfe, "rtol": None} for grid in possible for nfe in budgets]
    if not cells:
        raise InputError("there is nothing to compare: optimal grids are found for planned solvers only; name another grid")
    return cells


def cell_filename(cell: Mapping[str, Any]) -> str:
    """A file name for the cell, without a suffix: unipc3-logsnr-10, dpm23-own-rtol-0.01."""
    cost = f"rtol-{cell['rtol']:g}" if cell["nfe"] is None else cell["nfe"]
    return as_filename(f"{cell['solver']}-{cell['grid']}-{cost}")


def as_filename(name: str) -> str:
    """The name with each run of characters that file names should not have replaced by _."""
    return re.sub(r"[^\w.+=-]+", "_", name)
