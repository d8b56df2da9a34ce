"""Contenders: solvers as a user names them, and the cells of a comparison that they make.

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
from experiments.sampling import jobs
from solvers import SOLVERS
from solvers.entries import Options, Planned, Solver
from solvers.registry import find

Cell = dict[str, Any]
OPTIMAL, OWN = "optimal", "own"


def parse(contender: str) -> tuple[str, Options]:
    """A solver's name and the options it is told; InputError for what is no solver, has no such option, or draws noise."""
    match = re.fullmatch(r"([^()]+)(?:\(([^()]*)\))?", contender.strip())
    if match is None:
        raise InputError(f"{contender!r} is no solver: give NAME, or NAME(option=value, option=value)")
    solver, pairs = match[1].strip(), [pair.partition("=") for pair in (match[2] or "").split(",") if pair.strip()]
    if any(not value.strip() for _, _, value in pairs):
        raise InputError(f"an option in {contender!r} has no value: give NAME(option=value)")
    options = jobs.choose_options(solver, [(name.strip(), value.strip()) for name, _, value in pairs])
    entry = find(solver)
    if isinstance(entry, Planned):
        raise InputError(f"{solver} is a plan, and has one number of evaluations: give the name of a solver")
    if entry.stochastic or options.get("eta"):
        raise InputError(f"{contender} draws noise, so there is no solution to be compared with: take a solver of the ODE")
    return solver, options


def choose(text: str) -> list[str]:
    """The contenders of a list, separated by commas outside parentheses; "all" is every solver of the ODE whose evaluations are
    known beforehand, and the adaptive ones. InputError as `parse`, and for one that is named twice."""
    names = [name.strip() for name in re.split(r",(?![^(]*\))", text)]
    if "all" in names:
        others = [name for name in names if name != "all"]
        names = [*others, *(name for name in of_the_registry() if name not in others)]
    for name in names:
        parse(name)
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"the solver {twice[0]} is named twice: leave one out")
    return names


def is_of_ones_own(contender: str) -> bool:
    """Whether it is MODULE:NAME, whose numbers its name does not say."""
    name, _ = parse(contender)
    return ":" in name and name.removesuffix("+unic") not in SOLVERS


def of_the_registry() -> Iterator[str]:
    """Every solver of the ODE that can be told how much to spend, by evaluations or by tolerance."""
    return (name for name, entry in SOLVERS.items() if not entry.stochastic and (entry.evaluations or entry.adaptive))


def cells(
    contenders: Sequence[str], grids: Sequence[str], budgets: Sequence[int], tolerances: Sequence[float] = ()
) -> list[Cell]:
    """Each contender on each grid with each budget, or with each tolerance if it is adaptive; optimal grids are of planned
    solvers alone. InputError for an unknown grid, a budget of nothing, and if nothing is left."""
    if unknown := [grid for grid in grids if grid not in (*GRIDS, OPTIMAL)]:
        raise InputError(f"unknown grid {unknown[0]!r}: expected {', '.join([*GRIDS, OPTIMAL])}")
    if min(budgets, default=1) < 1:
        raise InputError("a solver needs at least 1 evaluation, not 0: leave it out of --nfe")
    made: list[Cell] = []
    for contender in contenders:
        solver, options = parse(contender)
        entry = find(solver)
        if entry.adaptive and options.keys() & {"rtol", "atol"}:
            raise InputError(f"{contender} is run with several tolerances, rtol = atol: give these as --rtol 0.1,0.01")
        if entry.adaptive:
            made += [{"solver": contender, "grid": OWN, "nfe": None, "rtol": rtol} for rtol in tolerances]
            continue
        fits = [grid for grid in grids if grid != OPTIMAL or isinstance(entry, Solver)]
        made += [{"solver": contender, "grid": grid, "nfe": nfe, "rtol": None} for grid in fits for nfe in budgets]
    if not made:
        raise InputError("there is nothing to compare: optimal grids are found for planned solvers only; name another grid")
    return made


def tolerances(text: str) -> list[float]:
    """Comma-separated numbers between 0 and 1; InputError for others."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < rtol < 1 for rtol in found) or len(set(found)) < len(found):
        raise InputError(f"{text!r} is no list of different tolerances between 0 and 1, as 0.1,0.01,0.001")
    return found


def stem(cell: Mapping[str, Any]) -> str:
    """A cell as the name of a file."""
    spent = f"rtol-{cell['rtol']:g}" if cell["nfe"] is None else cell["nfe"]
    return as_file(f"{cell['solver']}-{cell['grid']}-{spent}")


def as_file(name: str) -> str:
    """The name without what files cannot have in theirs."""
    return re.sub(r"[^\w.+=-]+", "_", name)
