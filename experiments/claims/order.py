"""Claim: a solver converges with the order that it claims: python -m experiments.claims.order

Not on a toy problem, as in the tests, but where it is used: in float64 from λ_min to λ_max, on a mixture, whose ε is exact, and
on the shipped network. NFE is doubled, on equal steps in λ. The order is a limit: the slope of log error against log NFE at the
last doubling whose errors are at least ten times that of the solution.

A multistep method that starts with a ramp of orders 1, 2, ... claims the order that the ramp leaves. The error that the ramp adds
may be too small to be seen yet, so that the slope may be anything from there to the order of the method itself.

Refuted by a slope that is further than 0.15 from what is claimed, on a model that is smooth in λ. The mixture and the network
are: they are called with λ itself. A network that is called with the labels of a DDPM table is not (ddpm_clock_mixture.py), and
no order above 2 is claimed on it in the end: what is measured there is the error below which orders are lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path

import click

from experiments.claims import common, reporting
from experiments.claims.common import ClaimOptions, Problems, solver_of
from experiments.claims.reporting import group_by, is_uncertain
from experiments.common import results
from experiments.common.commands import Script
from experiments.common.markdown import table
from experiments.common.results import Row
from experiments.comparison.cells import parse_contender
from experiments.comparison.ranking import measured

CALLED_WITH_LABELS = "experiments.claims.ddpm_clock_mixture:mixture"
SOLVERS = (
    *("ddim", "dpm2", "heun", "ipndm", "dpmpp2m", "dpmpp3m-published"),
    *("dpm3", "dpmpp3m", "dpmpp3m(start=single)", "deis-rho", "deis-rho(start=single)", "unipc2"),
    *("rk:rk4", "unipc3", "unipc3(start=single)"),
)
BUDGETS = (24, 48, 96, 192, 384, 768)  # in whole steps of 1, 2, 3 and 4 evaluations
WITHIN = 0.15
LOST = 0.5  # a slope that is so far below the claim shows that the order is lost
FAST = ("ddim", "dpm2", "rk:rk4")  # their slopes are close to their orders at few evaluations


def claimed(contender: str) -> tuple[int, int]:
    """The least and the largest order that a contender may show."""
    solver, (_, options) = solver_of(contender), parse_contender(contender)
    least = solver.ramp_order if options.get("start", "ramp") == "ramp" else 0
    return least or solver.order, solver.order


def doublings(line: Sequence[Row]) -> list[tuple[Row, Row, float]]:
    """Each row of a solver, by NFE, the next, and the slope between them."""
    return [(a, b, math.log(a["median"] / b["median"]) / math.log(b["nfe"] / a["nfe"])) for a, b in pairwise(line)]


def last_certain(line: Sequence[Row]) -> float | None:
    """The slope of the last doubling before the first error that is uncertain."""
    certain = takewhile(lambda each: not is_uncertain(each[0]) and not is_uncertain(each[1]), doublings(line))
    return next((slope for _, _, slope in reversed([*certain])), None)


def by_solver(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each solver, by NFE."""
    return {solver: sorted(line, key=lambda row: row["nfe"]) for (solver,), line in group_by(rows, "solver").items()}


def report(out: Path) -> str:
    """The slopes on each model, and whether they are what was claimed."""
    about, rows = results.read(out)
    smooth: list[str] = []
    kinked: list[str] = []
    refuted: list[str] = []
    misses: list[float] = []
    for (model,), here in group_by(measured(rows, "median"), "model").items():
        part = f"{_heading(model, here[0])}\n\n{_slopes(here)}"
        if about["clock"][model] != "lam":
            kinked += [part, _lost(here)]
            continue
        smooth.append(part)
        for solver, line in by_solver(here).items():
            (low, high), slope = claimed(solver), last_certain(line)
            miss = 0.0 if slope is None else max(low - slope, slope - high, 0.0)
            if miss > WITHIN:
                refuted.append(f"on {model} by {solver}, whose slope is {slope:.2f}")
            elif slope is not None:
                misses.append(miss)
    held = f"{len(misses)} slopes are within {max(misses):.2f} of what is claimed" if misses else ""
    return "\n\n".join([reporting.verdict(held, refuted), *smooth, *kinked, reporting.samples_and_runs(about)]) + "\n"


def _heading(model: str, row: Row) -> str:
    """A model, and how well its solution is known."""
    return f"On `{model}`, whose solution takes {row['solution_nfe']} evaluations and is known to {row['known_median']:.0e}:"


def _slopes(rows: Sequence[Row]) -> str:
    """The table of a model: the slope of each doubling, the last certain one in bold, those after it in parentheses."""
    pairs, lines = list(pairwise(sorted({row["nfe"] for row in rows}))), []
    for solver, line in by_solver(rows).items():
        (low, high), last = claimed(solver), last_certain(line)
        at = {(a["nfe"], b["nfe"]): _slope(slope, slope == last, is_uncertain(b)) for a, b, slope in doublings(line)}
        claim = f"{low}" if low == high else f"{low} to {high}"
        lines.append([solver, claim, *(at.get(pair, "–") for pair in pairs), f"{line[-1]['median']:.1e}"])
    return table(["solver", "claims", *(f"{a} → {b}" for a, b in pairs), "last error"], lines)


def _slope(slope: float, last: bool, uncertain: bool) -> str:
    return f"({slope:.2f})" if uncertain else f"**{slope:.2f}**" if last else f"{slope:.2f}"


def _lost(rows: Sequence[Row]) -> str:
    """The error below which orders are lost for good."""
    lost = []
    for solver, line in by_solver(rows).items():
        for _, b, slope in reversed(doublings(line)):
            if slope >= claimed(solver)[0] - LOST:
                break
            lost.append((b["median"], solver, slope))
    known = [each for each in lost if each[0] > rows[0]["known_median"]]
    if not known:
        return "Here t(λ) has kinks; no order is lost to them yet."
    error, solver, slope = max(known)
    return f"Here t(λ) has kinks. The first to lose its order is {solver}, whose slope is {slope:.2f} at an error of {error:.0e}."


@click.command(cls=Script)
@common.claim_options("order", n=2)
def main(options: ClaimOptions) -> None:
    """The orders of solvers on a mixture and on a network, over their whole schedule."""
    n, tolerance = (1, 1e-6) if options.fast else (options.n, 1e-12)
    solvers, budgets = (FAST, BUDGETS[:3]) if options.fast else (SOLVERS, BUDGETS)
    problems = Problems(options, tolerance, n=n, dtype="float64")
    wanted = common.claim_cells(options.models or (*common.MODELS, CALLED_WITH_LABELS), solvers, budgets)
    clocks = {cell["model"]: problems.problem(cell).loaded.model.clock for cell in wanted}
    rows = common.fill(wanted, problems, options, clock=clocks)
    common.conclude(rows, options.out, reporting.panel_per_model(3), report)


if __name__ == "__main__":
    main()
