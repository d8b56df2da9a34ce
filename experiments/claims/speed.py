"""Claim: at equal NFE solvers take equal time, that of the network: python -m experiments.claims.speed

A solver and the bare network take turns, the network being called on the same samples as often as the solver calls it, so that
whatever else the machine does falls on both. The ratio of their seconds is the cost of a solver, with its planning and all that
is done to predictions; absolute times say little, and are not kept. Memory is the number of states that a plan keeps, the anchor
included, and the peak memory of the process, as a multiple of that with the network alone.

Refuted by planned solvers whose ratios, medians over the turns, differ by more than a tenth. Adaptive solvers are here to show
what it costs to choose steps: they look at errors, and those of dpm and dpmpp step each sample on its own.

Nothing else should run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from diffode.files import atomic
from experiments.claims import common, reporting
from experiments.claims.common import ClaimOptions, Problems
from experiments.claims.reporting import group_by
from experiments.common import figures, results
from experiments.common.commands import Script
from experiments.common.markdown import table
from experiments.common.results import Row
from experiments.comparison.cost import metered
from experiments.comparison.problem import Problem
from experiments.comparison.ranking import contender_name, measured

PLANNED = ("ddim", "heun", "dpm2", "dpm3", "rk:rk4", "ipndm", "deis-rho", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3")
ADAPTIVE = ("dpm23", "dpmpp23", "bosh3", "dopri5")
NFE, TOLERANCE = 24, 0.01
TURNS = 9
WITHIN = 0.1


def network_alone(problem: Problem) -> Callable[[int], None]:
    """call(n): n calls of the network and nothing else, on the samples of the first batch, at λ from one end to the other."""
    inputs: list[tuple[Any, Any]] = []
    batch, recipe = problem.batches[0], problem.settings.recipe
    model = problem.labelled(problem.model, batch)
    network, x = model.network, problem.initial_state(batch, recipe.state_dtype, recipe.device)

    def recorded(*x: Any, **condition: Any) -> torch.Tensor:
        inputs.append((x, condition))
        return network(*x, **condition)

    model = model.replace(network=recorded)
    with torch.no_grad():
        for lam in np.linspace(problem.schedule.lam_min, problem.schedule.lam_max, NFE):
            model(x, float(lam))

    @torch.no_grad()
    def call(n: int) -> None:
        for x, condition in islice(cycle(inputs), n):
            network(*x, **condition)

    return call


def memory(problem: Problem, contender: Mapping[str, Any]) -> int | None:
    """The states that the plan of a contender keeps, if it has one."""
    plan = problem.prepare(**contender).plan
    return None if plan is None else 1 + plan.memory


def measure(problem: Problem, cell: Mapping[str, Any], turns: int) -> Row:
    """The row of a cell: the median ratio of its seconds to those of the network, its quartiles, and memory."""
    contender = {name: cell[name] for name in common.CONTENDER}
    prepared = problem.prepare(**contender)
    call_network, spent = network_alone(problem), problem.run(prepared).nfe  # which warms up both
    ratios, peaks = [], []
    for _ in range(turns):
        with metered(problem.settings.recipe.device) as network:
            call_network(round(spent))
        run = problem.run(prepared)
        ratios.append(run.seconds / network.seconds * round(spent) / spent)
        peaks.append(run.peak_mib / network.peak_mib if run.peak_mib and network.peak_mib else np.nan)
    low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    states = memory(problem, contender)
    return {"spent": spent, "ratio": ratio, "low": low, "high": high, "states": states, "peak": np.median(peaks)}


def report(out: Path) -> str:
    """The ratios, and whether those of planned solvers are alike."""
    about, rows = results.read(out)
    parts: list[str] = []
    held: list[str] = []
    refuted: list[str] = []
    for (model,), here in group_by(measured(rows, "ratio"), "model").items():
        parts.append(f"#### {model}\n\n{_table(here)}")
        planned = sorted((row["ratio"], row["solver"]) for row in here if row["nfe"])
        if planned:
            (least, first), (most, last) = planned[0], planned[-1]
            sentence = f"{least:.2f} times ({first}) to {most:.2f} times ({last}) the network's seconds on {model}"
            (held if most <= (1 + WITHIN) * least else refuted).append(sentence)
    alike = f"planned solvers take {'; '.join(held)}" if held else ""
    verdict = reporting.verdict(alike, [f"by planned solvers, which take {each}" for each in refuted])
    note = "Seconds and peak of memory are multiples of those of the network alone, in as many calls."
    return "\n\n".join([verdict, note, *parts, reporting.samples_and_runs(about)]) + "\n"


def _table(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["solver"] if row["nfe"] else contender_name(row),
            f"{row['spent']:.1f}".removesuffix(".0"),
            f"**{row['ratio']:.2f}** ({row['low']:.2f} to {row['high']:.2f})",
            "–" if row["states"] is None else f"{row['states']}",
            f"{row['peak']:.2f}" if measured([row], "peak") else "–",
        ]
        for row in rows
    ]
    return table(["solver", "NFE", "seconds (quartiles)", "states", "peak of memory"], lines)


def plot(out: Path) -> None:
    """The ratios with their quartiles, a panel for each model."""
    figures.require_matplotlib()
    from matplotlib.figure import Figure

    models = group_by(measured(results.read(out)[1], "ratio"), "model")
    figure = Figure(figsize=(4.2 * len(models), 3.4), layout="constrained")
    axes = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axis, ((model,), here) in zip(axes, models.items(), strict=True):
        for i, row in enumerate(here):
            colour = "#0072b2" if row["nfe"] else "#d55e00"
            axis.plot([row["low"], row["high"]], [i, i], color=colour, lw=3, alpha=0.35)
            axis.plot(row["ratio"], i, "o", color=colour, ms=4)
        axis.axvline(1, color="#333333", lw=0.6)
        axis.set_yticks(range(len(here)), [row["solver"] for row in here], fontsize=8)
        axis.set_title(model, size=8.5, weight="bold", loc="left")
        axis.tick_params(labelsize=8)
        axis.grid(color="#e4e4e4", lw=0.6, axis="x")
    axes[0].invert_yaxis()
    figure.supxlabel("seconds, relative to the network's (adaptive solvers in red)", size=8.5)
    with atomic(results.with_suffix(out, ".png")) as part:
        figure.savefig(part, format="png", dpi=130)


@click.command(cls=Script)
@common.claim_options("speed", n=common.BATCH)
def main(options: ClaimOptions) -> None:
    """The seconds of solvers, relative to those of the network."""
    n, turns = (2, 2) if options.fast else (options.n, TURNS)
    solvers, nfe = (("ddim", "unipc3", "dpm23"), 12) if options.fast else ((*PLANNED, *ADAPTIVE), NFE)
    wanted = common.claim_cells(options.models or common.MODELS, solvers, (nfe,), (TOLERANCE,))
    problems = Problems(options, TOLERANCE, n=n, batch=n)  # their solutions are not needed

    def seconds(cell: Mapping[str, Any]) -> Row:
        return measure(problems.problem(cell), cell, turns)

    rows = common.fill(wanted, problems, options, seconds, turns=turns)
    common.conclude(rows, options.out, plot, report)


if __name__ == "__main__":
    main()
