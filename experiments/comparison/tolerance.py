"""The tolerance that a reference solution needs, `compare --tolerance auto`: the loosest at which it is known well enough.

On the first batch the tolerance is lowered by factors of ten. Each solution's own error is its distance from the one before, so
nothing is computed twice. It ends

    where the own error is MARGIN times smaller than that of the best contender, with as much again in reserve (RESERVE), since
    not all contenders are run for it: of the largest budget, those of the highest order;
    where it no longer falls by half, since the network is not even enough, as one in float32; or at 1e-12.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffode.errors import InputError
from experiments.common.progress import announce
from experiments.comparison.cells import OPTIMAL, parse_contender
from experiments.comparison.ground_truth import MARGIN, distance, error_summary, solved_batch
from experiments.comparison.problem import Problem

AUTO = "auto"
TOLERANCES = [float(f"1e-{digits}") for digits in range(4, 13)]
RESERVE = 5.0
MOST = 4  # contenders that are run for it


def find_tolerance(problem: Problem, cells: Sequence[Mapping[str, Any]], folder: Path) -> float:
    """The tolerance; each step is said. folder: of the solution's batches, where those of the first batch are left."""
    rows, ends = problem.batches[0], [*_ends(problem, cells)]
    looser, error, before = None, math.inf, TOLERANCES[0]
    for tolerance in TOLERANCES:
        batch = solved_batch(problem, rows, tolerance, folder, looser=looser)
        looser, last = torch.from_numpy(batch["x"]), error
        error, best = error_summary(batch["off"])["rmse"], min((_error(end, looser) for end in ends), default=0.0)
        announce(
            f"solution at tolerance {tolerance:g}: {int(batch['nfe']):,} evaluations of a batch, own error {error:.1e}"
            + f", that of the best of {len(ends)} contenders {best:.1e}" * bool(ends)
        )
        if error * MARGIN * RESERVE <= best:
            break
        if error > last / 2:
            return tolerance if error <= last else before
        before = tolerance
    return tolerance


def _error(x: Tensor, solution: Tensor) -> float:
    return error_summary(distance(x.double(), solution).numpy())["rmse"]


def _ends(problem: Problem, cells: Sequence[Mapping[str, Any]]) -> Iterator[Tensor]:
    """Where the contenders that are likely to be the best arrive, of the first batch."""
    planned = [cell for cell in cells if cell["nfe"] is not None and cell["grid"] != OPTIMAL]
    budget = max((cell["nfe"] for cell in planned), default=0)
    first = {cell["solver"]: cell for cell in reversed(planned) if cell["nfe"] == budget}  # of each its first grid
    by_order = sorted(first.values(), key=lambda cell: -(parse_contender(cell["solver"])[0].order or 0))
    for cell in by_order[:MOST]:
        try:
            yield problem.run(problem.prepare(**cell), problem.batches[:1]).x
        except InputError:  # it cannot have that budget
            continue
