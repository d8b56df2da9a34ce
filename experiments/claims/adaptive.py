"""Claim: at equal NFE, adaptive integrators do not do better than planned solvers: python -m experiments.claims.adaptive

The adaptive ones are torchdiffeq's integrators, which see dx/dλ and nothing of its linear part, and the embedded pairs of dpm and
dpmpp, which integrate that part exactly and choose the steps of each sample; each with rtol = atol from 0.05 to 0.001. The NFE of
such a run is the mean over samples, rejected steps included. Its rival is the best of four planned solvers on equal steps in λ,
each at the largest NFE measured that is not above the run's.

Refuted by an adaptive run that errs less than its rival.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click

from experiments.claims import common, reporting
from experiments.claims.common import ClaimOptions, Problems
from experiments.claims.reporting import group_by, two_digits
from experiments.common import results
from experiments.common.commands import Script
from experiments.common.markdown import table
from experiments.common.results import Row
from experiments.comparison.ranking import contender_name, measured

ADAPTIVE = ("adaptive_heun", "bosh3", "dopri5", "dopri8", "dpm12", "dpm23", "dpmpp12", "dpmpp23")
TOLERANCES = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
PLANNED = ("dpm2", "dpm3", "dpmpp2m", "unipc3")
TWINS = {"dpm12": "dpm2", "dpm23": "dpm3"}  # embedded pair -> the planned solver that takes the same steps
BUDGETS = (6, 8, 10, 12, 15, 18, 20, 24, 27, 30, 33, 36, 40, 44, 48, 54, 60, 66, 72, 78, 84, 96, 108, 120, 132)

Match = tuple[float, Row, Row]  # the error of an adaptive row as a multiple of its rival's, the row, and the rival


def rival(row: Row, planned: Sequence[Row]) -> Row | None:
    """The best of the planned rows, of each solver the one with the largest NFE that is not above the adaptive row's."""
    affordable = group_by([other for other in planned if other["nfe"] <= row["spent"]], "solver").values()
    nearest = (max(line, key=lambda other: other["nfe"]) for line in affordable)
    return min(nearest, key=lambda other: other["median"], default=None)


def matches(rows: Sequence[Row]) -> list[Match]:
    """The adaptive rows of a model that have a rival."""
    good = measured(rows, "median")
    planned = [row for row in good if row["nfe"] is not None]
    pairs = ((row, rival(row, planned)) for row in good if row["nfe"] is None)
    return [(row["median"] / other["median"], row, other) for row, other in pairs if other]


def report(out: Path) -> str:
    """Where each adaptive solver comes closest to its rival, and whether any errs less."""
    about, rows = results.read(out)
    parts: list[str] = []
    refuted: list[str] = []
    ratios: list[float] = []
    for (model,), here in group_by(rows, "model").items():
        found = matches(here)
        ratios += [ratio for ratio, _, _ in found]
        refuted += [f"on {model} by {_in_front(row, other)}" for ratio, row, other in found if ratio < 1]
        parts.append(f"#### {model}\n\n{_table(found)}\n\n{_against_twins(here)}".rstrip())
    behind, held = [ratio for ratio in ratios if ratio >= 1], ""
    if behind:
        least, middle, most = map(two_digits, (min(behind), median(behind), max(behind)))
        held = f"{len(behind)} adaptive runs err {least} to {most} times as much as the best planned solver that spends no more, "
        held += f"{middle} times in the median"
    note = "For each adaptive solver: the run that comes closest to its rival, and the largest ratio of all its runs."
    return "\n\n".join([reporting.verdict(held, refuted), note, *parts, reporting.samples_and_runs(about)]) + "\n"


def _table(found: Sequence[Match]) -> str:
    """A line for each adaptive solver."""
    lines = []
    for solver in dict.fromkeys(row["solver"] for _, row, _ in found):
        mine = [match for match in found if match[1]["solver"] == solver]
        ratio, row, other = min(mine, key=lambda match: match[0])
        run = [solver, f"{row['rtol']:g}", f"{row['spent']:.1f}", two_digits(row["median"])]
        against = [f"{other['solver']} at {other['nfe']}", two_digits(other["median"])]
        lines.append([*run, *against, f"**{two_digits(ratio)}**", two_digits(max(match[0] for match in mine))])
    return table(["", "rtol", "NFE", "error", "rival", "its error", "ratio", "largest ratio"], lines)


def _against_twins(rows: Sequence[Row]) -> str:
    """The errors of embedded pairs relative to those of the same steps in equal lengths."""
    good, sentences = measured(rows, "median"), []
    for pair, single in TWINS.items():
        planned = [row for row in good if row["solver"] == single]
        found = [(row, rival(row, planned)) for row in good if row["solver"] == pair]
        ratios = [row["median"] / other["median"] for row, other in found if other]
        if ratios:
            sentences.append(f"{pair} errs {two_digits(min(ratios))} to {two_digits(max(ratios))} times as much as {single}")
    return f"Relative to the same steps in equal lengths: {', '.join(sentences)}." if sentences else ""


def _in_front(row: Row, other: Row) -> str:
    """A run that errs less than its rival, in words."""
    run = f"{contender_name(row)}, whose error is {two_digits(row['median'])} with {row['spent']:.1f} evaluations"
    return f"{run}, that of {other['solver']} being {two_digits(other['median'])} with {other['nfe']}"


@click.command(cls=Script)
@common.claim_options("adaptive", n=16)
def main(options: ClaimOptions) -> None:
    """The error of adaptive integrators beside that of planned solvers that spend no more."""
    n, tolerance = (1, 1e-4) if options.fast else (options.n, common.TOLERANCE)
    fast = ("bosh3", "dpm23", "unipc3"), (6, 15, 30), (0.05,)
    solvers, budgets, tolerances = fast if options.fast else ((*PLANNED, *ADAPTIVE), BUDGETS, TOLERANCES)
    wanted = common.claim_cells(options.models or common.MODELS, solvers, budgets, tolerances)
    rows = common.fill(wanted, Problems(options, tolerance, n=n), options)
    common.conclude(rows, options.out, reporting.panel_per_model(2), report)


if __name__ == "__main__":
    main()
