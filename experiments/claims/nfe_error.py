"""Claim: a multistep solver of higher order errs several times less with 10 evaluations than ddim with 20:
python -m experiments.claims.nfe_error

The error is the difference from the solution of the model's ODE, from the same x_T to the same end, on equal steps in λ, for NFE
from 5 to 50: the root mean square over samples, the median sample's, and the distance in the features of the classifier, which is
1 for unrelated images. The three may say different things: where the flow divides a sample may come out as another one, with as
large an error whatever the solver, and then a few of them are the mean square.

Refuted by a model and a measure by which no multistep solver of order 2 or more errs half as much at 10 as ddim at 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from experiments.claims import common
from experiments.common import results
from experiments.common.commands import Script
from experiments.common.markdown import table
from experiments.common.results import Row
from experiments.comparison import measures
from experiments.comparison.ranking import MEASURES, answer, at_budget, best_at, measured

SOLVERS = ("ddim", "heun", "dpm2", "dpm3", "ipndm", "deis-rho", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3")
BUDGETS = (5, 6, 8, 10, 12, 15, 20, 30, 50)
SPENT, SEVERAL = 10, 2.0
JUDGED, SHOWN = ("rmse", "median", "features"), ("rmse", "median")


@dataclass(frozen=True)
class Duel:
    """The best multistep solver of order 2 or more at 10 evaluations, and ddim at 20, on a model by a measure; needs: the least
    evaluations with which ddim errs no more, in words."""

    measure: str
    first: Row
    ddim: Row
    needs: str

    @property
    def times(self) -> float:
        return float(self.ddim[self.measure] / self.first[self.measure])

    @property
    def cells(self) -> list[str]:
        """A line of the table."""
        errors = [common.number(row[self.measure]) for row in (self.first, self.ddim)]
        who = [self.first["model"], MEASURES[self.measure].label, self.first["solver"]]
        return [*who, *errors, f"**{common.number(self.times)}**", self.needs]

    def __str__(self) -> str:
        what = f"on {self.first['model']} by the {MEASURES[self.measure].label}"
        return (
            f"{what}: {self.first['solver']} at {SPENT} has {common.number(self.times)} times less of it than ddim at {2 * SPENT}"
        )


def duels(here: Sequence[Row]) -> list[Duel]:
    """Of a model's rows, by each measure."""
    found = []
    for measure in JUDGED:
        all_of_ddim = [row for row in measured(here, measure) if row["solver"] == "ddim"]
        first = next((row for row in at_budget(here, SPENT, measure) if multistep(row["solver"])), None)
        ddim = best_at(all_of_ddim, 2 * SPENT, measure)
        if first and ddim:
            enough = [row["nfe"] for row in all_of_ddim if row[measure] <= first[measure]]
            needs = f"{min(enough)}" if enough else f"more than {max(row['nfe'] for row in all_of_ddim)}"
            found.append(Duel(measure, first, ddim, needs))
    return found


def multistep(solver: str) -> bool:
    """Whether a solver takes one evaluation a step, and is of order 2 or more."""
    return common.entry(solver).evaluations == 1 and common.entry(solver).order > 1


def report(out: Path) -> str:
    """Whether the claim held, and the tables of each model."""
    about, found = results.read(out)
    parts: list[str] = []
    fought: list[Duel] = []
    for (model,), here in common.by(found, "model").items():
        fought += duels(here)
        tables = [f"{MEASURES[name].label.capitalize()}:\n\n{common.errors(here, name)}" for name in SHOWN]
        parts.append("\n\n".join([f"#### {model}", answer(here), _one(here, about["n"]), *tables]))
    refuted = [str(duel) for duel in fought if duel.times < SEVERAL]
    times = [duel.times for duel in fought if duel.times >= SEVERAL]
    held = f"{common.number(min(times))} to {common.number(max(times))} times, by {len(times)} comparisons" if times else ""
    head = ["model", "measure", f"best multistep at {SPENT}", "has", f"ddim at {2 * SPENT}", "times", "ddim needs"]
    lines = table(head, [duel.cells for duel in fought])
    return "\n\n".join([common.verdict(held, refuted), lines, *parts, common.made_of(about)]) + "\n"


def _one(here: Sequence[Row], n: int) -> str:
    """What the worst sample has in the mean square error of the best at 10."""
    row = best_at(here, SPENT)
    if row is None:
        return ""
    share = row["worst"] ** 2 / (n * row["rmse"] ** 2)
    return f"Of the mean square error of {row['solver']} at {SPENT} one sample of {n} has {share:.0%}."


@click.command(cls=Script)
@common.options("nfe_error", n=64)
def main(**o: Any) -> None:
    """The error of solvers against NFE."""
    n, tolerance = (2, 1e-4) if o["fast"] else (o["n"], common.TOLERANCE)
    solvers, budgets = (("ddim", "dpmpp2m", "unipc3"), (5, 10, 20)) if o["fast"] else (SOLVERS, BUDGETS)
    models, bench = o["models"] or common.MODELS, common.Bench(o, tolerance, n=n)
    chosen = {model: measures.choose(measures.AUTO, None, bench.problem({"model": model})) for model in models}

    @cache
    def judge(model: str) -> measures.Judge:
        return chosen[model].of(bench.solution({"model": model}).x)

    made = common.fill(
        "nfe_error",
        common.cells(models, solvers, budgets),
        bench,
        o,
        {"features": {model: each.about["features"] for model, each in chosen.items()}},
        lambda cell: bench.measure(cell, judge(cell["model"])),
    )
    common.tell(made, o["out"], common.panels(2, "rmse"), report)


if __name__ == "__main__":
    main()
