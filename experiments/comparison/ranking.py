"""The conclusions from the rows of a comparison: the Pareto front, the best at a budget, and the answer in one sentence.

A row is dominated if another costs no more and errs no more, and one of the two is less; the front is the rows that are not
dominated. A number counts by its magnitude: a difference of log-density of −0.1 is an error of 0.1. A row that failed or was
skipped, or whose number is not finite, is in no ranking.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median_low
from typing import Any, NamedTuple

from experiments.common.results import Row

BUDGET, BASELINE = 10, "ddim"  # the budget of the answer, and what its best is compared with, if the rows have them
TIE = 1.01  # errors within this ratio are called the same


class Wording(NamedTuple):
    """How a column of errors is called: in a sentence, on an axis, at the head of a table; and what it is."""

    noun: str
    label: str
    head: str
    title: str


MEASURES = {
    "rmse": Wording(
        "error",
        "root mean square error",
        "rmse",
        "root mean square over samples and their numbers of the difference from the reference solution",
    ),
    "median": Wording(
        "median error",
        "error of the median sample",
        "median",
        "root mean square difference of a sample from the reference solution, the median over samples",
    ),
    "worst": Wording(
        "largest error",
        "error of the worst sample",
        "worst",
        "root mean square difference of a sample from the reference solution, the largest over samples",
    ),
    "features": Wording(
        "distance in features",
        "distance in features, relative",
        "features",
        "distance from the reference solution in features, relative to that of unrelated samples",
    ),
    "frechet": Wording("Fréchet distance", "Fréchet distance", "Fréchet", "Fréchet distance from the data ± its standard error"),
    "lpips": Wording(
        "LPIPS",
        "LPIPS",
        "LPIPS",
        "learned perceptual distance of the images from the reference solution's, the mean over samples; 0 for equal ones",
    ),
    "log_p": Wording(
        "difference of log-density",
        "|difference of log-density|, nats per pixel",
        "log p",
        "mean log-density minus that of the reference solution, nats per pixel",
    ),
    "components": Wording(
        "difference of components",
        "total variation of components",
        "components",
        "of a mixture: total variation between a sample's posterior over its components and the reference's, mean over samples",
    ),
}


def magnitude(row: Mapping[str, Any], name: str) -> float | None:
    """|row[name]|, or None where there is no finite number."""
    value = row.get(name)
    return abs(float(value)) if isinstance(value, int | float) and math.isfinite(value) else None


def measured(rows: Iterable[Row], *names: str) -> list[Row]:
    """The rows that have finite numbers under all of these names."""
    return [row for row in rows if all(magnitude(row, name) is not None for name in names)]


def contender_name(row: Mapping[str, Any]) -> str:
    """A cell without its budget: unipc3 on logsnr; dpm23 at rtol 0.01."""
    return f"{row['solver']} on {row['grid']}" if row["nfe"] is not None else f"{row['solver']} at rtol {row['rtol']:g}"


def cell_name(row: Mapping[str, Any]) -> str:
    """A cell with its budget: unipc3 on logsnr at 10; dpm23 at rtol 0.01."""
    return f"{contender_name(row)} at {row['nfe']}" if row["nfe"] is not None else contender_name(row)


def pareto(rows: Iterable[Row], cost: str = "spent", measure: str = "rmse") -> list[Row]:
    """The Pareto front, by increasing cost; rows that are equal in both are on it together."""

    def point(row: Row) -> tuple[float, float]:
        return abs(row[cost]), abs(row[measure])

    front: list[Row] = []
    for row in sorted(measured(rows, cost, measure), key=point):
        if not front or point(row)[1] < point(front[-1])[1] or point(row) == point(front[-1]):
            front.append(row)
    return front


def at_budget(rows: Iterable[Row], nfe: float, measure: str = "rmse") -> list[Row]:
    """The rows of exactly this budget, and those of adaptive solvers that take no more in the mean; the best first, and among
    equals the cheapest."""
    within = [
        row for row in measured(rows, "spent", measure) if row["nfe"] == nfe or (row["nfe"] is None and row["spent"] <= nfe)
    ]
    return sorted(within, key=lambda row: (abs(row[measure]), row["spent"]))


def best_at(rows: Iterable[Row], nfe: float, measure: str = "rmse") -> Row | None:
    """The first of `at_budget`, if there is any."""
    return next(iter(at_budget(rows, nfe, measure)), None)


def budgets(rows: Iterable[Row], measure: str = "rmse") -> list[float]:
    """The budgets of the rows, in increasing order; if all solvers are adaptive, the evaluations that they took."""
    found = measured(rows, "spent", measure)
    return sorted({row["nfe"] for row in found if row["nfe"] is not None} or {row["spent"] for row in found})


def answer(rows: Sequence[Row], measure: str = "rmse") -> str:
    """The answer: the best at 10 evaluations (or at the median budget), and how many times smaller its error is than that of
    ddim, on ddim's best grid, at twice as many evaluations (or the nearest budget above; or else at as many). Where ddim was not
    run, or is itself the best, the comparison is with the next best solver, or grid, at the same budget."""
    if (budget := _answer_budget(rows, measure)) is None:
        return _nothing_measured(rows, measure)
    best, *others = at_budget(rows, budget, measure)
    tied = [row for row in others if row["solver"] != best["solver"] and _ratio(row, best, measure) <= TIE]
    baseline = _baseline(rows, best, others, budget, measure)
    count = f"{budget:.1f}".removesuffix(".0")
    return f"For this model at {count} evaluations: {contender_name(best)}{_mean_cost(best)}{_as_good(tied)}; " + (
        f"nothing else was measured at {count}."
        if baseline is None
        else f"{_compared(best, baseline, measure)} {_baseline_name(baseline, best)}."
    )


def median_answer(rows: Sequence[Row]) -> str:
    """The answer by the median over samples, if another contender is the best by it; otherwise nothing. At few evaluations some
    samples end in another mode, and the rmse is theirs."""
    budget = _answer_budget(rows, "median")
    if budget is None or contender_name(at_budget(rows, budget)[0]) == contender_name(at_budget(rows, budget, "median")[0]):
        return ""
    return f"By the median over samples{answer(rows, 'median').removeprefix('For this model')}"


def _answer_budget(rows: Sequence[Row], measure: str) -> float | None:
    """The budget that the answer is about, if anything was measured."""
    known = budgets(rows, measure)
    return (BUDGET if BUDGET in known else median_low(known)) if known else None


def _baseline(rows: Sequence[Row], best: Row, others: Sequence[Row], budget: float, measure: str) -> Row | None:
    """The row that the best is compared with."""
    ddim = [row for row in rows if row["solver"] == BASELINE != best["solver"] and row["nfe"] is not None]
    at_least_twice = [nfe for nfe in budgets(ddim, measure) if nfe >= 2 * budget]
    found = best_at(ddim, at_least_twice[0] if at_least_twice else budget, measure)
    return found or next((row for row in others if row["solver"] != best["solver"]), next(iter(others), None))


def _ratio(row: Row, best: Row, measure: str) -> float:
    """The row's error relative to the best's; 1 where both are 0."""
    error, least = abs(row[measure]), abs(best[measure])
    return error / least if least else math.inf if error else 1.0


def _compared(best: Row, baseline: Row, measure: str) -> str:
    noun, ratio = MEASURES[measure].noun, _ratio(baseline, best, measure)
    if math.isinf(ratio):
        return f"no {noun} at all, against {abs(baseline[measure]):.2g} of"
    if ratio == 0:
        return f"{noun} of {abs(best[measure]):.2g}, against none of"
    if max(ratio, 1 / ratio) <= TIE:
        return f"as much {noun} as"
    return f"{format_ratio(ratio)} times less {noun} than" if ratio > 1 else f"{format_ratio(1 / ratio)} times the {noun} of"


def _baseline_name(baseline: Row, best: Row) -> str:
    """Its solver, its grid unless that is the best's, and its budget."""
    if baseline["nfe"] is not None and baseline["grid"] == best["grid"] and baseline["solver"] != best["solver"]:
        return f"{baseline['solver']} at {baseline['nfe']}"
    return f"{cell_name(baseline)}{_mean_cost(baseline)}"


def _mean_cost(row: Row) -> str:
    """The evaluations that an adaptive solver took."""
    return "" if row["nfe"] is not None else f" ({row['spent']:.1f} in the mean)"


def _as_good(tied: Sequence[Row]) -> str:
    """The solvers that err as little, to within 1 %."""
    names = list(dict.fromkeys(row["solver"] for row in tied))
    if not names:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f", and as good within 1 % {', '.join(names[:2]) if more else ' and '.join(names)}{more}"


def _nothing_measured(rows: Sequence[Row], measure: str) -> str:
    failed, skipped = ([row for row in rows if reason in row] for reason in ("error", "skipped"))
    first = f" The first to fail was {cell_name(failed[0])}: {failed[0]['error']}" if failed else ""
    return (
        f"For this model no {MEASURES[measure].noun} was measured: of {len(rows)} cells {len(failed)} failed and "
        f"{len(skipped)} were skipped.{first}"
    )


def format_ratio(ratio: float) -> str:
    """A ratio above 1 to two digits: 1.3, 12, 130, 12,000; to three where it would read as 1."""
    digits = 1 - math.floor(math.log10(ratio))
    rounded = round(ratio, digits)
    if rounded == 1 != ratio:
        return f"{ratio:.2f}"
    return f"{rounded:,.{max(0, 1 - math.floor(math.log10(rounded)))}f}"
