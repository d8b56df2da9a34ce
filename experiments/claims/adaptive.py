"""Claim: at equal NFE, adaptive integrators do not do better than planned solvers: python -m experiments.claims.adaptive

Adaptive are torchdiffeq's integrators, which see dx/dλ and nothing of its linear part, and the embedded pairs of dpm and dpmpp,
which integrate that exactly and choose the steps of each sample; each with rtol = atol from 0.05 to 0.001. What it spends is the
mean over samples, rejected steps included. Against each run stands the best of four planned solvers on equal steps in λ, of each
what was measured with the most evaluations that are no more.

Refuted by a run that errs less than all planned ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from experiments.claims import common
from experiments.common import results
from experiments.common.commands import Script
from experiments.common.markdown import table
from experiments.common.results import Row
from experiments.comparison.ranking import measured, named

ADAPTIVE = ("adaptive_heun", "bosh3", "dopri5", "dopri8", "dpm12", "dpm23", "dpmpp12", "dpmpp23")
TOLERANCES = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
PLANNED = ("dpm2", "dpm3", "dpmpp2m", "unipc3")
SAME = {"dpm12": "dpm2", "dpm23": "dpm3"}  # pairs, and what their steps are when they are planned
BUDGETS = (6, 8, 10, 12, 15, 18, 20, 24, 27, 30, 33, 36, 40, 44, 48, 54, 60, 66, 72, 78, 84, 96, 108, 120, 132)


def rival(row: Row, planned: Sequence[Row]) -> Row | None:
    """The best of the planned rows, each solver with the most evaluations that are no more than the adaptive row's."""
    affordable = common.by([other for other in planned if other["nfe"] <= row["spent"]], "solver").values()
    nearest = (max(line, key=lambda other: other["nfe"]) for line in affordable)
    return min(nearest, key=lambda other: other["median"], default=None)


def pairs(found: Sequence[Row]) -> list[tuple[float, Row, Row]]:
    """Of each adaptive row of a model, how many times the error of its rival it has, the row, and the rival."""
    good = measured(found, "median")
    planned = [row for row in good if row["nfe"] is not None]
    met = ((row, rival(row, planned)) for row in good if row["nfe"] is None)
    return [(row["median"] / other["median"], row, other) for row, other in met if other]


def report(out: Path) -> str:
    """Where each adaptive solver comes closest, and whether any comes in front."""
    about, found = results.read(out)
    parts: list[str] = []
    refuted: list[str] = []
    ratios: list[float] = []
    for (model,), here in common.by(found, "model").items():
        met = pairs(here)
        ratios += [ratio for ratio, _, _ in met]
        refuted += [f"on {model} by {_in_front(row, other)}" for ratio, row, other in met if ratio < 1]
        head = ["", "rtol", "NFE", "error", "planned", "its error", "times", "at most"]
        solvers = dict.fromkeys(row["solver"] for _, row, _ in met)
        lines = [_line([pair for pair in met if pair[1]["solver"] == solver]) for solver in solvers]
        parts.append(f"#### {model}\n\n{table(head, lines)}\n\n{_same(here)}".rstrip())
    behind, held = [ratio for ratio in ratios if ratio >= 1], ""
    if behind:
        least, middle, most = map(common.number, (min(behind), median(behind), max(behind)))
        held = f"{len(behind)} adaptive runs err {least} to {most} times as much as the best planned solver that spends no more, "
        held += f"{middle} times in the median"
    said = "Of each adaptive solver the run that comes closest, and how far the others are at most:"
    return "\n\n".join([common.verdict(held, refuted), said, *parts, common.made_of(about)]) + "\n"


def _same(here: Sequence[Row]) -> str:
    """How the pairs do beside the same steps, planned."""
    good, said = measured(here, "median"), []
    for pair, single in SAME.items():
        planned = [row for row in good if row["solver"] == single]
        met = [(row, rival(row, planned)) for row in good if row["solver"] == pair]
        ratios = [row["median"] / other["median"] for row, other in met if other]
        if ratios:
            said.append(f"{pair} errs {common.number(min(ratios))} to {common.number(max(ratios))} times as much as {single}")
    return f"Beside the same steps in equal lengths: {', '.join(said)}." if said else ""


def _line(met: Sequence[tuple[float, Row, Row]]) -> list[str]:
    """A solver in the table."""
    ratio, row, other = min(met, key=lambda pair: pair[0])
    spent = [row["solver"], f"{row['rtol']:g}", f"{row['spent']:.1f}", common.number(row["median"])]
    against = [f"{other['solver']} at {other['nfe']}", common.number(other["median"])]
    return [*spent, *against, f"**{common.number(ratio)}**", common.number(max(pair[0] for pair in met))]


def _in_front(row: Row, other: Row) -> str:
    """A run that errs less than its rival."""
    mine = f"{named(row)}, whose error is {common.number(row['median'])} with {row['spent']:.1f} evaluations"
    return f"{mine}, that of {other['solver']} being {common.number(other['median'])} with {other['nfe']}"


@click.command(cls=Script)
@common.options("adaptive", n=16)
def main(**o: Any) -> None:
    """The error of adaptive integrators beside that of planned solvers that spend no more."""
    n, tolerance = (1, 1e-4) if o["fast"] else (o["n"], common.TOLERANCE)
    fast = ("bosh3", "dpm23", "unipc3"), (6, 15, 30), (0.05,)
    solvers, budgets, tolerances = fast if o["fast"] else ((*PLANNED, *ADAPTIVE), BUDGETS, TOLERANCES)
    wanted = common.cells(o["models"] or common.MODELS, solvers, budgets, tolerances)
    common.tell(common.fill("adaptive", wanted, common.Bench(o, tolerance, n=n), o), o["out"], common.panels(2), report)


if __name__ == "__main__":
    main()
