"""Claim: a solver converges with the order that it claims: python -m experiments.order

Not on a toy, as tests have it, but where it is used: in float64 from λ_min to λ_max, on a mixture, whose ε is exact, and on the
shipped network. NFE is doubled, on equal steps in λ; the order is the slope of log error against log NFE, by least squares over
the last two doublings whose errors are at least ten times what the solution is known to.

A multistep method that starts with a ramp of orders 1, 2, ... claims the order that the ramp leaves. What the ramp adds may be
too small to be seen yet, so that the slope may be anything from there to the order of the method itself.

Refuted by a slope that is further than 0.15 from what is claimed, on a model that is smooth in λ. Both are: the network is called
with λ itself. One that is called with the labels of a DDPM table is not (labels.py), and no order above 2 is claimed on it in the
end: what is measured there is the error below which orders are lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import claims, rows
from experiments.answer import measured
from experiments.contenders import parse
from experiments.markdown import table
from experiments.rows import Row
from experiments.script import Script
from solvers.registry import find

LABELS = "experiments.labels:mixture"
SOLVERS = (
    *("ddim", "dpm2", "heun", "ipndm", "dpmpp2m", "dpmpp3m-published"),
    *("dpm3", "dpmpp3m", "dpmpp3m(start=single)", "deis-rho", "deis-rho(start=single)", "unipc2"),
    *("rk:rk4", "unipc3", "unipc3(start=single)"),
)
BUDGETS = (24, 48, 96, 192, 384, 768)  # in whole steps of 1, 2, 3 and 4 evaluations
MOST = {"fashion": 384}
WITHIN = 0.15
LOST = 0.5  # how far below its claim a slope is that shows that the order is lost
FITTED = 3  # errors, and so two doublings
FAST = ("ddim", "dpm2", "rk:rk4")  # whose slopes are soon their orders


def claimed(solver: str) -> tuple[int, int]:
    """The least and the largest order that a contender may show."""
    name, options = parse(solver)
    entry = find(name)
    ramp = getattr(entry, "started", 0) if options.get("start", "ramp") == "ramp" else 0
    return ramp or entry.order, entry.order


def slopes(line: Sequence[Row]) -> list[float]:
    """Of each doubling."""
    return [math.log(a["median"] / b["median"]) / math.log(b["nfe"] / a["nfe"]) for a, b in pairwise(line)]


def fitted(line: Sequence[Row]) -> float | None:
    """The slope, if there are enough errors that are known; line: the rows of a solver, by NFE."""
    floor = next((i for i, row in enumerate(line) if claims.unsure(row)), len(line))
    last = line[:floor][-FITTED:]
    if len(last) < FITTED:
        return None
    nfe, error = (np.log([row[name] for row in last]) for name in ("nfe", "median"))
    return float(-np.polyfit(nfe, error, 1)[0])


def lines_of(found: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each solver, by NFE."""
    good = sorted(measured(found, "median"), key=lambda row: row["nfe"])
    return {solver: line for (solver,), line in claims.by(good, "solver").items()}


def report(out: Path) -> str:
    """The slopes on each model, and whether they are what was claimed."""
    about, found = rows.read(out)
    smooth, kinked, refuted, misses = [], [], [], []
    for (model,), here in claims.by(found, "model").items():
        if about["clock"][model] != "lam":
            kinked.append(f"{_named(model, here)}\n\n{_slopes(here)}\n\n{_lost(here)}")
            continue
        smooth.append(f"{_named(model, here)}\n\n{_slopes(here)}")
        for solver, line in lines_of(here).items():
            (low, high), slope = claimed(solver), fitted(line)
            if slope is not None:
                misses.append(max(low - slope, slope - high, 0.0))
                if misses[-1] > WITHIN:
                    refuted.append(f"on {model} by {solver}, whose slope is {slope:.2f}")
    held = f"all {len(misses)} slopes are within {max(misses, default=0):.2f} of what is claimed"
    return "\n\n".join([claims.verdict(held, refuted), *smooth, *kinked, claims.made_of(about)]) + "\n"


def _named(model: str, here: Sequence[Row]) -> str:
    """A model, and its solution."""
    row = measured(here, "known_median")[0]
    return (
        f"On `{model}`, whose solution takes DOP853 {row['solution_nfe']} evaluations and is known to {row['known_median']:.0e}:"
    )


def _slopes(here: Sequence[Row]) -> str:
    """The table of a model: the slope of each doubling, in parentheses where the error is not known well enough to be fitted."""
    budgets, table_lines = sorted({row["nfe"] for row in here}), []
    for solver, line in lines_of(here).items():
        (low, high), slope = claimed(solver), fitted(line)
        unsure = [claims.unsure(row) for row in line[1:]]
        each = [f"({each:.2f})" if doubt else f"{each:.2f}" for each, doubt in zip(slopes(line), unsure, strict=True)]
        claim = f"{low}" if low == high else f"{low} to {high}"
        table_lines.append([solver, claim, *each, "–" if slope is None else f"**{slope:.2f}**", f"{line[-1]['median']:.1e}"])
    return table(["solver", "claims", *(f"{a} → {b}" for a, b in pairwise(budgets)), "fitted", "last error"], table_lines)


def _lost(here: Sequence[Row]) -> str:
    """Below which error the order is lost."""
    below = [
        (b["median"], solver, slope)
        for solver, line in lines_of(here).items()
        for (a, b), slope in zip(pairwise(line), slopes(line), strict=True)
        if slope < claimed(solver)[0] - LOST and b["median"] > b["known_median"]
    ]
    if not below:
        return "Here t(λ) has kinks; no order is lost to them yet."
    error, solver, slope = max(below)
    return (
        f"Here t(λ) has kinks. The first to lose its order is {solver}: its slope is {slope:.2f} where its error is {error:.0e}."
    )


def plot(out: Path) -> None:
    """Error against NFE."""
    _, found = rows.read(out)
    claims.picture(found, rows.beside(out, ".png"), lambda row: row["model"], 3)


@click.command(cls=Script)
@claims.options("order", n=4)
def main(**o: Any) -> None:
    """The orders of solvers on a mixture and on a network, over their whole schedule."""
    n, tolerance = (1, 1e-6) if o["fast"] else (o["n"], 1e-11)
    solvers, budgets = (FAST, BUDGETS[:3]) if o["fast"] else (SOLVERS, BUDGETS)
    bench = claims.Bench(o, tolerance, n=n, dtype="float64")
    wanted = claims.cells(o["models"] or (*claims.MODELS, LABELS), solvers, budgets)
    wanted = [cell for cell in wanted if cell["nfe"] <= MOST.get(cell["model"], max(budgets))]
    clocks = {cell["model"]: bench.problem(cell).loaded.model.clock for cell in wanted}
    claims.carry_out("order", wanted, bench, o, {"clock": clocks}, plot=plot, report=report)


if __name__ == "__main__":
    main()
