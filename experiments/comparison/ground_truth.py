"""The reference solution of a problem, how well it is known, and how far a contender's samples are from it.

It is found by SciPy's DOP853, an integrator of order 8 that shares no code with the solvers compared, in float64 with rtol = atol
= `tolerance`. Its own error is estimated from above, by its distance from the solution at ten times the tolerance.

A network in float32 makes the right-hand side uneven, and no tolerance makes the solution better than that. Its rounding is
measured as the distance between two solutions whose starts differ in the last bit of float32. The solution then has a limit,
MARGIN times the larger of both: an error below it is not known, and is given as the limit.

With x* the solution and ‖·‖ the root mean square over the numbers of a sample, the error of samples x is

    rmse = sqrt(mean ‖x − x*‖²)      median ‖x − x*‖      worst = max ‖x − x*‖      over samples
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import InputError, in_words
from diffode.evaluation import Counter
from diffode.files import atomic
from diffode.model import EpsModel
from diffode.ode import accurate
from diffode.reading import read_npz, reading
from diffode.schedule import Array
from experiments.common.commands import is_out_of_memory
from experiments.common.progress import progress
from experiments.comparison.problem import Problem
from experiments.sampling.recipe import LATER, flat
from solvers.execute import refuse_nonfinite

TOLERANCE = 1e-8
MARGIN = 10  # how many times smaller than a row's error the solution's own has to be


@dataclass(frozen=True)
class Solution:
    """x: (n, *shape), float64, on the CPU. own_error: the estimated ‖error‖ of each sample, (n,). nfe: the most evaluations that
    any sample took. about: how it was found, its own error as in `error_summary`, and so its `rounding` and `limit`, if any.
    """

    x: Tensor
    own_error: Array
    nfe: int
    about: dict[str, Any]

    def errors(self, x: Tensor) -> dict[str, float]:
        """The errors of samples (n, *shape), not below the limit; see the module docstring."""
        found, limit = error_summary(distance(x.double().cpu(), self.x).numpy()), self.about.get("limit", {})
        return {name: max(error, limit.get(name, 0.0)) for name, error in found.items()}


def error_summary(distances: Array) -> dict[str, float]:
    """rmse, median and worst of the distances ‖x − x*‖ of samples, (n,)."""
    return {"rmse": float(np.sqrt(np.mean(distances**2))), "median": float(np.median(distances)), "worst": float(distances.max())}


def measure_cell(
    problem: Problem,
    solution: Solution,
    cell: Mapping[str, Any],
    further_measures: Callable[[Tensor], dict[str, float]] = lambda x: {},
) -> dict[str, Any]:
    """The row of a cell (cells.py), whose grid may be given as its λ: its cost, its errors, and what `further_measures` returns
    for its samples; or {"skipped": why}, if the contender cannot be run so."""
    try:
        prepared = problem.prepare(**cell)
    except InputError as error:
        return {"skipped": str(error)}
    outcome = problem.run(prepared)
    cost = {"spent": outcome.nfe, "calls": outcome.calls, "seconds": outcome.seconds, "peak_mib": outcome.peak_mib}
    return {**cost, **solution.errors(outcome.x), **further_measures(outcome.x)}


def find_solution(problem: Problem, folder: Path, tolerance: float = TOLERANCE, limited: bool = False) -> Solution:
    """The reference solution. Each of its batches is computed once, and read from `folder` afterwards, unless it is damaged.

    limited: whether errors have a limit, as they do with every network in float32.

    InputError for a tolerance that is not in (0, 1), and for a model that cannot be integrated: one that fails, whose output is
    not finite, or that is not smooth at all.
    """
    check_tolerance(tolerance)
    dtype, batches = problem.reference[0], []
    with progress(problem.settings.n, "solution", "samples", leave=False) as bar:
        for rows in problem.batches:
            batches.append(solved_batch(problem, rows, tolerance, folder, watch=bar.set_postfix_str))
            bar.update(rows.stop - rows.start)
    x, own_error = (np.concatenate([batch[name] for batch in batches]) for name in ("x", "off"))
    del problem.reference  # whose weights take memory
    nfe = max(int(batch["nfe"]) for batch in batches)
    known = error_summary(own_error)
    about: dict[str, Any] = {"method": "DOP853", "tolerance": tolerance, "dtype": dtype, "nfe": nfe, **known}
    if dtype == "float32":
        about["rounding"] = error_summary(np.concatenate([batch["rounding"] for batch in batches]))
        known = {name: max(error, about["rounding"][name]) for name, error in known.items()}
    if limited or dtype == "float32":
        about["limit"] = {name: MARGIN * error for name, error in known.items()}
    return Solution(torch.from_numpy(x), own_error, nfe, about)


def solved_batch(
    problem: Problem,
    rows: slice,
    tolerance: float,
    folder: Path,
    *,
    looser: Tensor | None = None,
    watch: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """The solution of these samples, from its file in `folder`, or else computed and written: `x`, its distance `off` from that
    at ten times the tolerance, its evaluations `nfe`, and its `rounding`, if the network is in float32.

    looser: the solution at ten times the tolerance, if it is known. watch: is told where the integrator is.
    """
    dtype, model = problem.reference
    file = folder / f"{_digest(problem, rows, tolerance, dtype)}.npz"
    if (known := _read_batch(file, problem, rows)) is None:
        watched = model.watched(refuse_nonfinite).watched(lambda _, lam, m: watch(f"λ = {lam:+.2f}"))
        _solve_batch(problem, watched, rows, tolerance, file, looser)
        known = _read_batch(file, problem, rows)
    assert known is not None
    return known


def check_tolerance(tolerance: float) -> None:
    """InputError for a tolerance that is not in (0, 1)."""
    if not 0 < tolerance < 1:
        raise InputError(f"the tolerance of the solution is a small positive number, not {tolerance:g}: give 1e-8")


def _digest(problem: Problem, rows: slice, tolerance: float, dtype: str) -> str:
    """Of all that decides the solution of these samples."""
    settings = flat(problem.settings)
    deciding = ("guidance", "clip", "threshold", "device", "denoise", *LATER)
    recipe = {name: settings[name] for name in deciding if name in settings}
    labels = problem.labels and problem.labels[rows]
    content = [problem.loaded.sha256, recipe, problem.seeds[rows], labels, tolerance, dtype]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _solve_batch(problem: Problem, model: EpsModel, rows: slice, tolerance: float, file: Path, looser: Tensor | None) -> None:
    """Solve for these samples, and write the file; InputError if the network fails."""
    try:
        arrays = _solve(problem, problem.labelled(model, rows), rows, tolerance, looser)
    except (InputError, OSError):
        raise
    except Exception as error:  # a user-defined network
        if is_out_of_memory(error):
            raise InputError(f"out of memory in the solution, {problem.settings.model} in float64: lower `batch`") from error
        raise InputError(f"{problem.settings.model} fails with batch {len(problem.seeds[rows])}: {in_words(error)}") from error
    with atomic(file) as part, open(part, "wb") as stream:
        np.savez(stream, **arrays)


@torch.no_grad()
def _solve(problem: Problem, model: EpsModel, rows: slice, tolerance: float, looser: Tensor | None) -> dict[str, Any]:
    """The arrays of solved_batch."""
    start, schedule = problem.initial_state(rows, torch.float64, problem.reference_device), problem.schedule

    def solve(x: Tensor, tolerance: float) -> tuple[Tensor, int]:
        counter = Counter()
        end = accurate(model, x, schedule.lam_min, schedule.lam_max, tolerance, counter)
        return (model(end, schedule.lam_max, "data", counter) if problem.settings.denoise else end).cpu(), counter.nfe

    looser = solve(start, 10 * tolerance)[0] if looser is None else looser
    x, nfe = solve(start, tolerance)
    found = {"x": x.numpy(), "off": distance(x, looser).numpy(), "nfe": nfe}
    if problem.reference[0] == "float64":
        return found
    last_bits = torch.randn(start.shape, generator=torch.Generator().manual_seed(0)).sign().to(start)
    moved, _ = solve(start * (1 + torch.finfo(torch.float32).eps * last_bits), tolerance)
    return {**found, "rounding": distance(moved, x).numpy()}


def distance(x: Tensor, other: Tensor) -> Tensor:
    """‖x − other‖ of each sample, (n,)."""
    return (x - other).reshape(len(x), -1).square().mean(1).sqrt()


def _read_batch(file: Path, problem: Problem, rows: slice) -> dict[str, Any] | None:
    """The arrays of a solution's batch; None if there are none, or others than are written (the archive has checksums)."""
    n = rows.stop - rows.start
    shapes: dict[str, tuple[int, ...]] = {"x": (n, *problem.loaded.image), "off": (n,), "nfe": ()}
    shapes |= {"rounding": (n,)} if problem.reference[0] == "float32" else {}
    try:
        with reading(file, "solution", "what compare wrote"):
            arrays = read_npz(file, shapes)
            good = all(arrays[name].shape == shape and np.isfinite(arrays[name]).all() for name, shape in shapes.items())
    except InputError:
        return None
    return arrays if good and arrays["x"].dtype == arrays["off"].dtype == np.float64 else None
