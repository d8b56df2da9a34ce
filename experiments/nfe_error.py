"""Claim: a multistep solver of higher order errs less with 10 evaluations than ddim with 20, several times so:
python -m experiments.nfe_error

The error is the root mean square over samples and pixels of the difference from the solution of the model's ODE, from the same
x_T to the same end, on equal steps in λ, for NFE from 5 to 50. Beside it stands the distance in the features of the classifier,
1 for unrelated images, which tells whether a difference could be seen. The rows have more, as of the mixture's exact log-density.

Refuted on a model where no multistep solver of order 2 or more errs half as much at 10 as ddim at 20.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from experiments import claims, judges, rows
from experiments.answer import answer, at_budget, best_at, measured
from experiments.rows import Row
from experiments.script import Script
from solvers.registry import find

SOLVERS = ("ddim", "heun", "dpm2", "dpm3", "ipndm", "deis-rho", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3")
BUDGETS = (5, 6, 8, 10, 12, 15, 20, 30, 50)
SPENT, SEVERAL = 10, 2.0
MEASURES = {"rmse": "Error", "features": "Distance in features"}


def best(found: Sequence[Row]) -> Row | None:
    """Of the multistep solvers of order 2 or more at 10 evaluations."""
    return next((row for row in at_budget(found, SPENT) if _multistep(row["solver"])), None)


def _multistep(solver: str) -> bool:
    entry = find(solver)
    return entry.evaluations == 1 and entry.order > 1


def report(out: Path) -> str:
    """The tables of each model, and whether the claim held."""
    about, found = rows.read(out)
    parts: list[str] = []
    held: list[str] = []
    refuted: list[str] = []
    for (model,), here in claims.by(found, "model").items():
        tables = [f"{what}:\n\n{claims.errors(here, name)}" for name, what in MEASURES.items() if measured(here, name)]
        parts.append("\n\n".join([f"#### {model}", answer(here), *tables]))
        first, ddim = best(here), [row for row in here if row["solver"] == "ddim"]
        twice = best_at(ddim, 2 * SPENT)
        if first is None or twice is None:
            continue
        error, of_ddim = first["rmse"], twice["rmse"]
        said = (
            f"on {model} {first['solver']} errs by {claims.number(error)} at {SPENT} and ddim by {claims.number(of_ddim)} at "
            f"{2 * SPENT}, {claims.number(of_ddim / error)} times as much, and ddim {_reaches(ddim, error)}"
        )
        (held if of_ddim >= SEVERAL * error else refuted).append(said)
    return "\n\n".join([claims.verdict("; ".join(held), refuted), *parts, claims.made_of(about)]) + "\n"


def _reaches(ddim: Sequence[Row], error: float) -> str:
    """With how many evaluations ddim errs no more."""
    enough = [row["nfe"] for row in measured(ddim, "rmse") if row["rmse"] <= error]
    return f"needs {min(enough)} to do as well" if enough else f"needs more than {max(row['nfe'] for row in ddim)} to do as well"


def plot(out: Path) -> None:
    """Error against NFE."""
    _, found = rows.read(out)
    claims.picture(found, rows.beside(out, ".png"), lambda row: row["model"], 2, "rmse")


@click.command(cls=Script)
@claims.options("nfe_error", n=64)
def main(**o: Any) -> None:
    """The error of solvers against NFE."""
    n, tolerance = (2, 1e-4) if o["fast"] else (o["n"], claims.TOLERANCE)
    solvers, budgets = (("ddim", "dpmpp2m", "unipc3"), (5, 10, 20)) if o["fast"] else (SOLVERS, BUDGETS)
    bench = claims.Bench(o, tolerance, n=n)
    wanted = claims.cells(o["models"] or claims.MODELS, solvers, budgets)
    judged = {cell["model"]: judges.choose(judges.AUTO, None, bench.problem(cell)) for cell in wanted}
    told: dict[str, judges.Judge] = {}

    def measure(cell: Mapping[str, Any]) -> Row:
        judge = told.setdefault(cell["model"], told.get(cell["model"]) or judged[cell["model"]].of(bench.solution(cell).x))
        return bench.measure(cell, judge)

    features = {model: each.about["features"] for model, each in judged.items()}
    claims.carry_out("nfe_error", wanted, bench, o, {"features": features}, measure=measure, plot=plot, report=report)


if __name__ == "__main__":
    main()
