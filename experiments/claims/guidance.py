"""Claim: the more guidance, the less a higher order gains: python -m experiments.claims.guidance

Guided by w, ε is that without labels plus w times its difference from that with them, in twice as many network calls; dynamic
thresholding then acts on x̂0 (diffode/model.py). Each w, with and without thresholding at 0.995, is another ODE, and the error is
the difference from its own solution. The gain of higher orders is the error of ddim divided by the least error of all solvers of
order 2 and above at the same NFE. Solvers of four orders, 1 to 4, on equal steps in λ.

Thresholding has a kink wherever a pixel reaches the threshold, and no solver has its order there; the solution takes thousands
of evaluations, and is not always known ten times better than the best solver is right (≈).

Refuted by a model and an NFE, of 10, 15 and 20, at which the gain is larger at w = 4 than at w = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from experiments.claims import common, reporting
from experiments.claims.common import ClaimOptions, Problems, solver_of
from experiments.claims.reporting import group_by, two_digits
from experiments.common import results
from experiments.common.commands import Script
from experiments.common.markdown import table
from experiments.common.results import Row
from experiments.comparison.ranking import measured

SOLVERS = ("ddim", "unipc1", "dpmpp2m", "unipc2", "dpmpp3m", "unipc3")
WEIGHTS, THRESHOLDS = (1.0, 2.0, 4.0), (None, 0.995)
BUDGETS, JUDGED = (5, 10, 15, 20, 30), (10, 15, 20)


def best(rows: Sequence[Row], nfe: int, lowest: int = 1, highest: int = 9) -> Row | None:
    """The row of the least error at an NFE, of solvers whose order is between these."""
    at_nfe = [row for row in measured(rows, "median") if row["nfe"] == nfe]
    fits = (row for row in at_nfe if lowest <= solver_of(row["solver"]).order <= highest)
    return min(fits, key=lambda row: row["median"], default=None)


def gain(rows: Sequence[Row], nfe: int) -> float | None:
    """The error of ddim divided by the least error of all orders above 1."""
    first, higher = best(rows, nfe, 1, 1), best(rows, nfe, 2)
    return first["median"] / higher["median"] if first and higher else None


def pays_from(rows: Sequence[Row], order: int) -> str:
    """The NFE from which on a solver of this order, or a higher one, errs less than all of lower order."""
    since = None
    for nfe in sorted({row["nfe"] for row in rows}):
        low, high = best(rows, nfe, 1, order - 1), best(rows, nfe, order)
        if low and high:
            since = None if high["median"] >= low["median"] else since or nfe
    return f"{since} NFE" if since else "nowhere"


def report(out: Path) -> str:
    """What orders gain at each weight, and whether that falls."""
    about, rows = results.read(out)
    parts: list[str] = []
    fell: list[tuple[float, str]] = []  # by which factor, and where
    refuted: list[str] = []
    for (model, threshold), here in group_by(measured(rows, "median"), "model", "threshold").items():
        problem = f"{model}, x̂0 thresholded at {threshold:g}" if threshold else model
        weighted = {weight: line for (weight,), line in group_by(here, "guidance").items()}
        parts.append(f"#### {problem}\n\n{_table(weighted)}")
        least, most = min(weighted), max(weighted)
        for nfe in JUDGED:
            before, after = gain(weighted[least], nfe), gain(weighted[most], nfe)
            if least < most and before is not None and after is not None:
                change = f"from {two_digits(before)} to {two_digits(after)} times on {problem} with {nfe} evaluations"
                if after < before:
                    fell.append((before / after, change))
                else:
                    refuted.append(f"by a gain that goes {change}")
    held = f"from the least w to the largest the gain falls in {len(fell)} cases" if fell else ""
    held += f", least {min(fell)[1]}, most {max(fell)[1]}" if fell else ""
    calls = {row["calls"] / row["spent"] for row in measured(rows, "calls") if row["guidance"] != 1}
    network = f"Guided evaluations take {max(calls, default=2):g} network calls. "
    return "\n\n".join([reporting.verdict(held, refuted), *parts, network + reporting.samples_and_runs(about)]) + "\n"


def _table(weighted: Mapping[float, Sequence[Row]]) -> str:
    """At each weight and NFE the best solver, its order, its error, and ddim's error as a multiple of it."""
    budgets = sorted({row["nfe"] for line in weighted.values() for row in line})
    lines = [[f"{nfe} NFE", *(_best(line, nfe) for line in weighted.values())] for nfe in budgets]
    for order in (2, 3):
        lines.append([f"orders from {order} pay from", *(pays_from(line, order) for line in weighted.values())])
    return table(["", *(f"w = {weight:g}" for weight in weighted)], lines)


def _best(line: Sequence[Row], nfe: int) -> str:
    row, ddim = best(line, nfe), best(line, nfe, 1, 1)
    if row is None or ddim is None:
        return "–"
    error = f"{'≈ ' * reporting.is_uncertain(row)}{two_digits(row['median'])}"
    return f"{row['solver']} ({solver_of(row['solver']).order}): {error}, {two_digits(ddim['median'] / row['median'])} ×"


def plot(out: Path) -> None:
    """Error against NFE: a column of panels for each weight, a row for each model with or without thresholding."""
    _, rows = results.read(out)

    def title(row: Row) -> str:
        return f"{row['model']}, w = {row['guidance']:g}{', thresholded' * (row['threshold'] is not None)}"

    reporting.error_plot(rows, results.with_suffix(out, ".png"), title, len({row["guidance"] for row in rows}))


@click.command(cls=Script)
@common.claim_options("guidance", n=8)
def main(options: ClaimOptions) -> None:
    """The error of solvers under guidance, with and without dynamic thresholding."""
    n, tolerance = (1, 1e-2) if options.fast else (options.n, 1e-5)
    solvers, weights, budgets = (("ddim", "dpmpp2m"), (1.0, 4.0), (10,)) if options.fast else (SOLVERS, WEIGHTS, BUDGETS)
    wanted = [
        cell
        for model in options.models or common.MODELS
        for threshold in THRESHOLDS
        for weight in weights
        for cell in common.claim_cells([model], solvers, budgets, guidance=weight, threshold=threshold)
    ]
    rows = common.fill(wanted, Problems(options, tolerance, n=n), options)
    common.conclude(rows, options.out, plot, report)


if __name__ == "__main__":
    main()
