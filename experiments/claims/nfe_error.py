"""Claim: a multistep solver of higher order errs several times less with 10 evaluations than ddim with 20:
python -m experiments.claims.nfe_error

The error is the difference from the solution of the model's ODE, from the same x_T to the same end, on equal steps in λ, for NFE
from 5 to 50: the root mean square over samples, the median sample's, and the distance in the features of the classifier, which is
1 for unrelated images. The three may disagree: where the flow divides, a sample may come out as another one, with as large an
error whatever the solver, and then a few of them are the mean square.

Refuted by a model and a measure by which no multistep solver of order 2 or more errs half as much at 10 as ddim at 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click

from experiments.claims import common, reporting
from experiments.claims.common import ClaimOptions, Problems, solver_of
from experiments.claims.reporting import group_by, two_digits
from experiments.common import results
from experiments.common.commands import Script
from experiments.common.markdown import table
from experiments.common.results import Row
from experiments.comparison import measures
from experiments.comparison.ranking import MEASURES, answer, at_budget, best_at, measured

SOLVERS = ("ddim", "heun", "dpm2", "dpm3", "ipndm", "deis-rho", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3")
BUDGETS = (5, 6, 8, 10, 12, 15, 20, 30, 50)
NFE, DDIM_NFE, SEVERAL = 10, 20, 2.0
JUDGED, SHOWN = ("rmse", "median", "features"), ("rmse", "median")


@dataclass(frozen=True)
class Duel:
    """The best multistep solver of order 2 or more at 10 evaluations against ddim at 20, on one model by one measure.

    ddim_needs: the least evaluations with which ddim errs no more, in words.
    """

    measure: str
    multistep: Row
    ddim: Row
    ddim_needs: str

    @property
    def ratio(self) -> float:
        return float(self.ddim[self.measure] / self.multistep[self.measure])

    @property
    def line(self) -> list[str]:
        """A line of the table."""
        errors = [two_digits(row[self.measure]) for row in (self.multistep, self.ddim)]
        names = [self.multistep["model"], MEASURES[self.measure].label, self.multistep["solver"]]
        return [*names, *errors, f"**{two_digits(self.ratio)}**", self.ddim_needs]

    def __str__(self) -> str:
        less = f"{two_digits(self.ratio)} times less of it than ddim at {DDIM_NFE}"
        where = f"on {self.multistep['model']} by the {MEASURES[self.measure].label}"
        return f"{where}: {self.multistep['solver']} at {NFE} has {less}"


def duels(rows: Sequence[Row]) -> list[Duel]:
    """Of a model's rows, by each measure."""
    found = []
    for measure in JUDGED:
        all_of_ddim = [row for row in measured(rows, measure) if row["solver"] == "ddim"]
        first = next((row for row in at_budget(rows, NFE, measure) if is_multistep(row["solver"])), None)
        ddim = best_at(all_of_ddim, DDIM_NFE, measure)
        if first and ddim:
            enough = [row["nfe"] for row in all_of_ddim if row[measure] <= first[measure]]
            needs = f"{min(enough)}" if enough else f"more than {max(row['nfe'] for row in all_of_ddim)}"
            found.append(Duel(measure, first, ddim, needs))
    return found


def is_multistep(contender: str) -> bool:
    """Whether a solver takes one evaluation per step, and is of order 2 or more."""
    solver = solver_of(contender)
    return solver.nfe_per_step == 1 and solver.order > 1


def report(out: Path) -> str:
    """Whether the claim held, and the tables of each model."""
    about, rows = results.read(out)
    parts: list[str] = []
    found: list[Duel] = []
    for (model,), here in group_by(rows, "model").items():
        found += duels(here)
        tables = [f"{MEASURES[name].label.capitalize()}:\n\n{reporting.error_table(here, name)}" for name in SHOWN]
        parts.append("\n\n".join([f"#### {model}", answer(here), _worst_sample(here, about["n"]), *tables]))
    refuted = [str(duel) for duel in found if duel.ratio < SEVERAL]
    ratios = [duel.ratio for duel in found if duel.ratio >= SEVERAL]
    held = f"{two_digits(min(ratios))} to {two_digits(max(ratios))} times, by {len(ratios)} comparisons" if ratios else ""
    head = ["model", "measure", f"best multistep at {NFE}", "has", f"ddim at {DDIM_NFE}", "times", "ddim needs"]
    lines = table(head, [duel.line for duel in found])
    return "\n\n".join([reporting.verdict(held, refuted), lines, *parts, reporting.samples_and_runs(about)]) + "\n"


def _worst_sample(rows: Sequence[Row], n: int) -> str:
    """The share of the worst sample in the mean square error of the best solver at 10."""
    row = best_at(rows, NFE)
    if row is None:
        return ""
    share = row["worst"] ** 2 / (n * row["rmse"] ** 2)
    return f"One sample of {n} makes {share:.0%} of the mean square error of {row['solver']} at {NFE}."


@click.command(cls=Script)
@common.claim_options("nfe_error", n=64)
def main(options: ClaimOptions) -> None:
    """The error of solvers against NFE."""
    n, tolerance = (2, 1e-4) if options.fast else (options.n, common.TOLERANCE)
    solvers, budgets = (("ddim", "dpmpp2m", "unipc3"), (5, 10, 20)) if options.fast else (SOLVERS, BUDGETS)
    models, problems = options.models or common.MODELS, Problems(options, tolerance, n=n)
    chosen = {model: measures.choose_measures(measures.AUTO, None, problems.problem({"model": model})) for model in models}

    @cache
    def features(model: str) -> measures.Measure:
        return chosen[model].against(problems.solution({"model": model}).x)

    rows = common.fill(
        common.claim_cells(models, solvers, budgets),
        problems,
        options,
        lambda cell: problems.measure(cell, features(cell["model"])),
        features={model: each.about["features"] for model, each in chosen.items()},
    )
    common.conclude(rows, options.out, reporting.panel_per_model(2, "rmse"), report)


if __name__ == "__main__":
    main()
