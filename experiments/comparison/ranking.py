"""What the rows of a comparison come to: the Pareto front, the best at a budget, and one sentence.

A row is dominated if another costs no more and errs no more, and one of the two is less; the front is the rows that are not
dominated. A number counts by its size: a difference of log-density of −0.1 is an error of 0.1. A row that failed or was skipped,
or whose number is not finite, is in no ranking.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median_low
from typing import Any, NamedTuple

from diffode.errors import InputError
from experiments.common.results import Row

BUDGET, BASELINE = 10, "ddim"  # what the sentence is about, where they were run
CLOSE = 1.01  # errors that are called the same
MARGIN = 10  # how many times better the solution is known than it is met


class Measure(NamedTuple):
    """A column of errors: in a sentence, on an axis, at the head of a column, and what it is."""

    noun: str
    label: str
    head: str
    title: str


MEASURES = {
    "rmse": Measure(
        "error",
        "root mean square error",
        "rmse",
        "root mean square over samples and their numbers of the difference from the reference solution",
    ),
    "median": Measure(
        "median error",
        "error of the median sample",
        "median",
        "root mean square difference of a sample from the reference solution, the median over samples",
    ),
    "worst": Measure("largest error", "error of the worst sample", "worst", "the same, the largest"),
    "features": Measure(
        "distance in features",
        "distance in features, relative",
        "features",
        "distance from the reference solution in features, relative to that of unrelated samples",
    ),
    "frechet": Measure("Fréchet distance", "Fréchet distance", "Fréchet", "Fréchet distance from the data ± its standard error"),
    "log_p": Measure(
        "difference of log-density",
        "|difference of log-density|, nats a pixel",
        "log p",
        "mean log-density less that of the reference solution, nats a pixel",
    ),
    "components": Measure(
        "difference of components",
        "total variation of components",
        "components",
        "of a mixture: total variation between a sample's posterior over its components and the reference's, mean over samples",
    ),
}


def size(row: Mapping[str, Any], name: str) -> float | None:
    """|row[name]|, or None where there is no finite number."""
    value = row.get(name)
    return abs(float(value)) if isinstance(value, int | float) and math.isfinite(value) else None


def measured(rows: Iterable[Row], *names: str) -> list[Row]:
    """The rows that have all of these numbers."""
    return [row for row in rows if all(size(row, name) is not None for name in names)]


def named(row: Mapping[str, Any]) -> str:
    """A cell without its budget: unipc3 on logsnr; dpm23 at rtol 0.01."""
    return f"{row['solver']} on {row['grid']}" if row["nfe"] is not None else f"{row['solver']} at rtol {row['rtol']:g}"


def in_full(row: Mapping[str, Any]) -> str:
    """A cell with its budget: unipc3 on logsnr at 10; dpm23 at rtol 0.01."""
    return f"{named(row)} at {row['nfe']}" if row["nfe"] is not None else named(row)


def pareto(rows: Iterable[Row], cost: str = "spent", measure: str = "rmse") -> list[Row]:
    """The front, by cost; rows that are equal in both are on it together."""

    def at(row: Row) -> tuple[float, float]:
        return abs(row[cost]), abs(row[measure])

    front: list[Row] = []
    for row in sorted(measured(rows, cost, measure), key=at):
        if not front or at(row)[1] < at(front[-1])[1] or at(row) == at(front[-1]):
            front.append(row)
    return front


def at_budget(rows: Iterable[Row], nfe: float, measure: str = "rmse") -> list[Row]:
    """The rows of this budget, the best first, and among equals the cheapest: those told to spend it, and of adaptive solvers
    those that spend no more in the mean."""
    found = [row for row in measured(rows, "spent", measure) if row["nfe"] == nfe or (row["nfe"] is None and row["spent"] <= nfe)]
    return sorted(found, key=lambda row: (abs(row[measure]), row["spent"]))


def best_at(rows: Iterable[Row], nfe: float, measure: str = "rmse") -> Row | None:
    """The first of `at_budget`, if there is any."""
    return next(iter(at_budget(rows, nfe, measure)), None)


def budgets(rows: Iterable[Row], measure: str = "rmse") -> list[float]:
    """What was spent, from the least: the budgets that were given, or, if all solvers are adaptive, what those took."""
    found = measured(rows, "spent", measure)
    return sorted({row["nfe"] for row in found if row["nfe"] is not None} or {row["spent"] for row in found})


def answer(rows: Sequence[Row], measure: str = "rmse") -> str:
    """The sentence: the best at 10 evaluations (or the median of the budgets) and how many times less its error is than that of
    ddim, on ddim's best grid, at twice as many (or the nearest budget above; or at as many). Where ddim was not run, or is itself
    the best, the comparison is with the next best solver, or grid, at the same budget."""
    if (budget := _budget(rows, measure)) is None:
        return _nothing(rows, measure)
    best, *others = at_budget(rows, budget, measure)
    same = [row for row in others if row["solver"] != best["solver"] and _ratio(row, best, measure) <= CLOSE]
    baseline = _baseline(rows, best, others, budget, measure)
    count = f"{budget:.1f}".removesuffix(".0")
    return f"For this model at {count} evaluations: {named(best)}{_spending(best)}{_as_good(same)}; " + (
        f"nothing else was measured at {count}."
        if baseline is None
        else f"{_compared(best, baseline, measure)} {_baseline_named(baseline, best)}."
    )


def typical(rows: Sequence[Row]) -> str:
    """The same sentence by the median over samples, if another is the best by it; else nothing. At few evaluations some samples
    end elsewhere, and the rmse is theirs."""
    budget = _budget(rows, "median")
    if budget is None or named(at_budget(rows, budget)[0]) == named(at_budget(rows, budget, "median")[0]):
        return ""
    return f"By the median over samples{answer(rows, 'median').removeprefix('For this model')}"


def check_solution(about: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """InputError unless the reference solution's own rmse, and its median error, are 10 times smaller than those of any row."""
    for measure in ("rmse", "median"):
        if not (found := measured(rows, measure)):
            continue
        best, own = min(found, key=lambda row: row[measure]), size(about["solution"], measure)
        if own is None or not MARGIN * own <= best[measure]:
            raise InputError(
                f"the reference solution is not known well enough to judge {in_full(best)}: its own {MEASURES[measure].noun} is "
                f"{about['solution'].get(measure)}, more than a {MARGIN}th of that row's {best[measure]:.3g}; give a smaller "
                f"--tolerance than {about['solution']['tolerance']:g}, and --overwrite or another --out"
            )


def _budget(rows: Sequence[Row], measure: str) -> float | None:
    """What the sentence is about, if anything was measured."""
    spent = budgets(rows, measure)
    return (BUDGET if BUDGET in spent else median_low(spent)) if spent else None


def _baseline(rows: Sequence[Row], best: Row, others: Sequence[Row], budget: float, measure: str) -> Row | None:
    """What the best is compared with."""
    ddim = [row for row in rows if row["solver"] == BASELINE != best["solver"] and row["nfe"] is not None]
    twice = [given for given in budgets(ddim, measure) if given >= 2 * budget]
    found = best_at(ddim, twice[0] if twice else budget, measure)
    return found or next((row for row in others if row["solver"] != best["solver"]), next(iter(others), None))


def _ratio(row: Row, best: Row, measure: str) -> float:
    """How many times the error of the best; 1 where neither errs."""
    over, under = abs(row[measure]), abs(best[measure])
    return over / under if under else math.inf if over else 1.0


def _compared(best: Row, baseline: Row, measure: str) -> str:
    noun, ratio = MEASURES[measure].noun, _ratio(baseline, best, measure)
    if math.isinf(ratio):
        return f"no {noun} at all, against {abs(baseline[measure]):.2g} of"
    if ratio == 0:
        return f"{noun} of {abs(best[measure]):.2g}, against none of"
    if max(ratio, 1 / ratio) <= CLOSE:
        return f"as much {noun} as"
    return f"{times(ratio)} times less {noun} than" if ratio > 1 else f"{times(1 / ratio)} times the {noun} of"


def _baseline_named(baseline: Row, best: Row) -> str:
    """Its solver, its grid unless that is the best's, and what it spent."""
    if baseline["nfe"] is not None and baseline["grid"] == best["grid"] and baseline["solver"] != best["solver"]:
        return f"{baseline['solver']} at {baseline['nfe']}"
    return f"{in_full(baseline)}{_spending(baseline)}"


def _spending(row: Row) -> str:
    return "" if row["nfe"] is not None else f" ({row['spent']:.1f} in the mean)"


def _as_good(same: Sequence[Row]) -> str:
    """Those that are as good, but for 1 %."""
    names = list(dict.fromkeys(row["solver"] for row in same))
    if not names:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f", and as good within 1 % {', '.join(names[:2]) if more else ' and '.join(names)}{more}"


def _nothing(rows: Sequence[Row], measure: str) -> str:
    failed, skipped = ([row for row in rows if reason in row] for reason in ("error", "skipped"))
    first = f" The first to fail was {in_full(failed[0])}: {failed[0]['error']}" if failed else ""
    return (
        f"For this model no {MEASURES[measure].noun} was measured: of {len(rows)} cells {len(failed)} failed and "
        f"{len(skipped)} were skipped.{first}"
    )


def times(ratio: float) -> str:
    """A ratio above 1 to two digits: 1.3, 12, 130, 12,000; to three where it would read as 1."""
    digits = 1 - math.floor(math.log10(ratio))
    rounded = round(ratio, digits)
    if rounded == 1 != ratio:
        return f"{ratio:.2f}"
    return f"{rounded:,.{max(0, 1 - math.floor(math.log10(rounded)))}f}"
