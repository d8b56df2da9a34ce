"""Claim: the more guidance, the less a higher order gains: python -m experiments.claims.guidance

Guided by w, ε is that without labels plus w times its difference from that with them, in twice as many network calls; dynamic
thresholding then acts on x̂0 (diffode/model.py). Each w, with and without thresholding at 0.995, is another ODE, and the error is
the difference from its own solution. What is gained by an order is how many times less than ddim's, with as many evaluations,
the least error is among solvers of that order and up. Solvers of four orders, 1 to 4, on equal steps in λ.

Thresholding has a kink wherever a pixel reaches the threshold, and no solver an order there; its solution takes thousands of
evaluations, and is not always known ten times better than the best solver is right (≈).

Refuted by a model and a number of evaluations, of 10, 15 and 20, where all orders above 1 gain more at w = 4 than at w = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from experiments.claims import common
from experiments.common import results
from experiments.common.commands import Script
from experiments.common.markdown import table
from experiments.common.results import Row
from experiments.comparison.ranking import measured

SOLVERS = ("ddim", "unipc1", "dpmpp2m", "unipc2", "dpmpp3m", "unipc3")
WEIGHTS, THRESHOLDS = (1.0, 2.0, 4.0), (None, 0.995)
BUDGETS, JUDGED = (5, 10, 15, 20, 30), (10, 15, 20)


def best(found: Sequence[Row], nfe: int, least: int = 1, most: int = 9) -> Row | None:
    """The row of the least error at a budget, of solvers whose order is between these."""
    fits = (row for row in measured(found, "median") if row["nfe"] == nfe and least <= common.entry(row["solver"]).order <= most)
    return min(fits, key=lambda row: row["median"], default=None)


def gain(found: Sequence[Row], nfe: int) -> float | None:
    """How many times less than ddim's the least error of all orders above 1 is."""
    first, higher = best(found, nfe, 1, 1), best(found, nfe, 2)
    return first["median"] / higher["median"] if first and higher else None


def pays_from(found: Sequence[Row], least: int) -> str:
    """The budget from which on this order, or a higher one, errs less than all lower ones."""
    since = None
    for nfe in sorted({row["nfe"] for row in found}):
        low, high = best(found, nfe, 1, least - 1), best(found, nfe, least)
        if low and high:
            since = None if high["median"] >= low["median"] else since or nfe
    return f"{since} NFE" if since else "nowhere"


def report(out: Path) -> str:
    """What orders gain at each weight, and whether that falls."""
    about, found = results.read(out)
    parts: list[str] = []
    fell: list[tuple[float, str]] = []  # how many times, and where
    refuted: list[str] = []
    for (model, threshold), here in common.by(measured(found, "median"), "model", "threshold").items():
        what = f"{model}, x̂0 thresholded at {threshold:g}" if threshold else model
        weighted = {weight: line for (weight,), line in common.by(here, "guidance").items()}
        parts.append(f"#### {what}\n\n{_table(weighted)}")
        least, most = min(weighted), max(weighted)
        for nfe in JUDGED:
            gains = [gain(weighted[weight], nfe) for weight in (least, most)]
            if least < most and gains[0] is not None and gains[1] is not None:
                said = f"from {common.number(gains[0])} to {common.number(gains[1])} times on {what} with {nfe} evaluations"
                if gains[1] < gains[0]:
                    fell.append((gains[0] / gains[1], said))
                else:
                    refuted.append(f"by a gain that goes {said}")
    held = f"from the least w to the largest the gain falls in {len(fell)} cases" if fell else ""
    held += f", least {min(fell)[1]}, most {max(fell)[1]}" if fell else ""
    calls = {row["calls"] / row["spent"] for row in measured(found, "calls") if row["guidance"] != 1}
    network = f"Guided evaluations take {max(calls, default=2):g} network calls. "
    return "\n\n".join([common.verdict(held, refuted), *parts, network + common.made_of(about)]) + "\n"


def _table(weighted: Mapping[float, Sequence[Row]]) -> str:
    """At each weight and budget the best solver, its order, its error, and how many times less than ddim's that is."""
    budgets = sorted({row["nfe"] for line in weighted.values() for row in line})
    lines = [[f"{nfe} NFE", *(_best(line, nfe) for line in weighted.values())] for nfe in budgets]
    for least in (2, 3):
        lines.append([f"orders from {least} pay from", *(pays_from(line, least) for line in weighted.values())])
    return table(["", *(f"w = {weight:g}" for weight in weighted)], lines)


def _best(line: Sequence[Row], nfe: int) -> str:
    row, ddim = best(line, nfe), best(line, nfe, 1, 1)
    if row is None or ddim is None:
        return "–"
    error = f"{'≈ ' * common.unsure(row)}{common.number(row['median'])}"
    return f"{row['solver']} ({common.entry(row['solver']).order}): {error}, {common.number(ddim['median'] / row['median'])} ×"


def plot(out: Path) -> None:
    """Error against NFE, a panel a weight, a row a model with or without thresholding."""
    _, found = results.read(out)

    def title(row: Row) -> str:
        return f"{row['model']}, w = {row['guidance']:g}{', thresholded' * (row['threshold'] is not None)}"

    common.picture(found, results.with_suffix(out, ".png"), title, len({row["guidance"] for row in found}))


@click.command(cls=Script)
@common.options("guidance", n=8)
def main(**o: Any) -> None:
    """The error of solvers under guidance, with and without dynamic thresholding."""
    n, tolerance = (1, 1e-2) if o["fast"] else (o["n"], 1e-5)
    solvers, weights, budgets = (("ddim", "dpmpp2m"), (1.0, 4.0), (10,)) if o["fast"] else (SOLVERS, WEIGHTS, BUDGETS)
    wanted = [
        cell
        for model in o["models"] or common.MODELS
        for threshold in THRESHOLDS
        for weight in weights
        for cell in common.cells([model], solvers, budgets, guidance=weight, threshold=threshold)
    ]
    common.tell(common.fill("guidance", wanted, common.Bench(o, tolerance, n=n), o), o["out"], plot, report)


if __name__ == "__main__":
    main()
